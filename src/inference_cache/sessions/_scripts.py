"""The Lua scripts: each is one atomic step on one session.

KEYS are root, turns and state. The first of ARGV has four parts with colons between: the TTL in milliseconds,
0 for none at all, -1 to leave the deadlines as they are; the generation that the caller expects, empty for
any; the number of turns and the state version that the caller knows to be acknowledged. The second is the
digest of the idempotency key of an update, and empty otherwise.

Every reply is, or begins with, five parts with colons between: a status, the generation, the number of turns,
the state version, and what the script has to say besides. They are one string because each element of a reply
costs the client more than the server takes for a command. The root is a hash:

==========  ==============================================================================================
``g``       generation: 16 hex digits, drawn anew whenever a session begins
``n``       number of turns, which the list must have
``v``       version of the state: 0 as long as there is none, and no state key
``w``       how many updates are remembered by their idempotency key
``o``       number of updates so far
``k...``    by digest of an idempotency key: what that update did
``r0...``   ring of the last ``w`` of these digests, so that the oldest is forgotten
==========  ==============================================================================================

The idempotency keys live in the root, not in a key of their own: they cannot be evicted alone, which would
turn a retry into a second append unnoticed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Final

__all__ = [
    "APPEND",
    "CREATE",
    "DELETE",
    "PEEK",
    "PEEK_STATE",
    "PEEK_TURNS",
    "READ_STATE",
    "READ_TURNS",
    "SET_STATE",
    "TOUCH",
    "Script",
]


@dataclass(frozen=True, slots=True)
class Script:
    """The text of a script and the name under which EVALSHA knows it."""

    source: str
    sha1: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha1(self.source.encode(), usedforsecurity=False)
        object.__setattr__(self, "sha1", digest.hexdigest())


_HEAD: Final = """
local root, list, state = KEYS[1], KEYS[2], KEYS[3]
local ttl_ms, expected, known_turns, known_version = string.match(ARGV[1], '^(.-):(.-):(.-):(.-)$')
ttl_ms = tonumber(ttl_ms)

-- The reply of a command, or nil when the key holds something of another type.
local function typed(...)
  local got = redis.pcall(...)
  if type(got) ~= 'table' or not got.err then return got end
  if string.sub(got.err, 1, 9) == 'WRONGTYPE' then return nil end
  error(got)
end

local head = typed('HMGET', root, 'g', 'n', 'v', 'w', 'o', 'k' .. ARGV[2])
local foreign = not head
head = head or {}
local generation, turns, version = head[1], tonumber(head[2]), tonumber(head[3])
local window, updates, done = tonumber(head[4]), tonumber(head[5]), head[6]

local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

-- One deadline for all keys. It is computed once, so that none outlives another by a millisecond.
local function slide()
  if ttl_ms < 0 then return end
  local function set(key)
    if ttl_ms == 0 then redis.call('PERSIST', key) else redis.call('PEXPIREAT', key, now_ms + ttl_ms) end
  end
  set(root)
  if turns > 0 then set(list) end
  if version > 0 then set(state) end
end

-- What there is of the session. TOUCH counts the keys, and keeps LRU from parting them by age.
local function found()
  local alive = redis.call('TOUCH', root, list, state)
  if foreign then return 'damaged' end
  if not generation then return alive == 0 and 'gone' or 'partial' end
  if not (turns and version and window and updates) then return 'damaged' end
  if expected ~= '' and expected ~= generation then return 'replaced' end
  local length = typed('LLEN', list)
  if not length then return 'damaged' end
  local whole = 1 + (turns > 0 and 1 or 0) + (version > 0 and 1 or 0)
  if length < turns or alive < whole then return 'partial' end
  if length > turns or alive > whole then return 'damaged' end
  if turns < tonumber(known_turns) or version < tonumber(known_version) then return 'rolled_back' end
  return 'ok'
end

local function reply(status, besides)
  return table.concat({status, generation or '', turns or 0, version or 0, besides or ''}, ':')
end

-- Notes what this update did, and forgets the oldest one in its place.
local function remember(did)
  local slot = 'r' .. (updates % window)
  local oldest = redis.call('HGET', root, slot)
  if oldest then redis.call('HDEL', root, 'k' .. oldest) end
  updates = updates + 1
  redis.call('HSET', root, 'n', turns, 'v', version, 'o', updates, slot, ARGV[2], 'k' .. ARGV[2], did)
end
"""

# Without flags a script is refused when the server is full, so that it never stops half-way.
_WRITES: Final = "#!lua"
# For scripts that need no memory: a full server must still serve and delete sessions.
_FREES: Final = "#!lua flags=allow-oom"
# Runs on a full, read-only or unpersisted server too.
_READS: Final = "#!lua flags=no-writes"

_CREATE: Final = """
-- ARGV: 3 the fresh generation, 4 the window, 5 the mode
local status = found()
if generation and generation == ARGV[3] then
  -- The reply to this very call was lost and it came again.
  if status == 'ok' then slide() end
  return reply(status)
end
if ARGV[5] == 'replace' then
  redis.call('UNLINK', root, list, state)
elseif status == 'ok' then
  if ARGV[5] == 'new' then return reply('exists') end
  slide()
  return reply('ok')
elseif status ~= 'gone' or expected ~= '' then
  return reply(status)
end
generation, turns, version = ARGV[3], 0, 0
redis.call('HSET', root, 'g', generation, 'n', 0, 'v', 0, 'w', ARGV[4], 'o', 0)
slide()
return reply('ok')
"""

_APPEND: Final = """
-- ARGV: 3 how many turns there were when this was first tried, -1 if never; 4... the turns
local status = found()
if status ~= 'ok' then return reply(status) end

-- The idempotency key of a turn, whose lengths of role and key stand at the given place.
local function key_of(turn, at)
  if #turn < at + 7 then return nil end
  local role_bytes, key_bytes = struct.unpack('>I2I2', turn, at)
  return string.sub(turn, at + 8 + role_bytes, at + 7 + role_bytes + key_bytes)
end

-- What is no longer remembered is looked for among the turns themselves.
local function look_for(key, from)
  local first, count = nil, 0
  while from < turns do
    for _, turn in ipairs(redis.call('LRANGE', list, from, from + 63)) do
      if key_of(turn, 43) == key then
        first, count = first or from, count + 1
      elseif first then
        return 't' .. first .. ':' .. count
      end
      from = from + 1
    end
  end
  return first and 't' .. first .. ':' .. count
end

local tried_at = tonumber(ARGV[3])
if not done and tried_at >= 0 then done = look_for(key_of(ARGV[4], 11), tried_at) end
if done then
  local first, count = string.match(done, '^t(%d+):(%d+)$')
  if not first then return reply('damaged') end
  slide()
  local entries = redis.call('LRANGE', list, first, tonumber(first) + tonumber(count) - 1)
  return {reply('repeated', first), unpack(entries)}
end
local position, entries = turns, {}
for i = 4, #ARGV do
  local place = struct.pack('>I8I8', turns, now_ms)
  local seal = redis.sha1hex(generation .. place .. string.sub(ARGV[i], 3, 10))
  entries[#entries + 1] = place .. string.sub(seal, 1, 16) .. ARGV[i]
  turns = turns + 1
end
redis.call('RPUSH', list, unpack(entries))
remember('t' .. position .. ':' .. #entries)
slide()
return reply('ok', position)
"""

_TURNS: Final = """
-- ARGV: 3 the position to go back from, -1 for the end; 4 how many turns at most; 5 how many bytes suffice
local status = found()
if status ~= 'ok' then return reply(status) end
local at, limit_bytes = tonumber(ARGV[3]), tonumber(ARGV[5])
if at < 0 or at > turns then at = turns end
local low = math.max(at - tonumber(ARGV[4]), 0)
local answer = {reply('ok')}
local size_bytes = 0
while at > low and size_bytes < limit_bytes do
  local from = math.max(at - 32, low)
  local entries = redis.call('LRANGE', list, from, at - 1)
  for i = #entries, 1, -1 do
    answer[#answer + 1] = entries[i]
    size_bytes = size_bytes + #entries[i]
    if size_bytes >= limit_bytes then break end
  end
  at = from
end
slide()
return answer
"""

_STATE: Final = """
local status = found()
if status ~= 'ok' then return reply(status) end
local value = version > 0 and typed('GET', state) or ''
if not value then return reply('damaged') end
slide()
return {reply('ok'), value}
"""

_SET_STATE: Final = """
-- ARGV: 3 the expected version, 4 the state, 5 whether this was tried before
local status = found()
if status ~= 'ok' then return reply(status) end
local next_version = tonumber(ARGV[3]) + 1
if done then
  if done ~= 'v' .. next_version then return reply('damaged') end
  slide()
  return reply('ok', next_version)
end
if version ~= next_version - 1 then
  if ARGV[5] == '0' or version < next_version then return reply('conflict') end
  -- Was it us who set that version? The state tells if it is still the same, and else the memory, if it
  -- reaches back so far: we are not in it, so it must name somebody else.
  if version == next_version then
    local value = typed('GET', state)
    if value and string.sub(value, 35, 50) == ARGV[2] then
      slide()
      return reply('ok', version)
    end
    return reply('conflict')
  end
  for _, did in ipairs(redis.call('HGETALL', root)) do
    if did == 'v' .. next_version then return reply('conflict') end
  end
  return reply('uncertain')
end
version = next_version
redis.call('SET', state, generation .. ARGV[4])
remember('v' .. version)
slide()
return reply('ok', version)
"""

_TOUCH: Final = """
local status = found()
if status == 'ok' then slide() end
return reply(status)
"""

_DELETE: Final = """
if expected ~= '' and generation and generation ~= expected then return reply('replaced') end
redis.call('UNLINK', root, list, state)
return reply('ok')
"""

CREATE: Final = Script(_WRITES + _HEAD + _CREATE)
APPEND: Final = Script(_WRITES + _HEAD + _APPEND)
SET_STATE: Final = Script(_WRITES + _HEAD + _SET_STATE)
READ_TURNS: Final = Script(_FREES + _HEAD + _TURNS)
PEEK_TURNS: Final = Script(_READS + _HEAD + _TURNS)
READ_STATE: Final = Script(_FREES + _HEAD + _STATE)
PEEK_STATE: Final = Script(_READS + _HEAD + _STATE)
TOUCH: Final = Script(_FREES + _HEAD + _TOUCH)
PEEK: Final = Script(_READS + _HEAD + _TOUCH)
DELETE: Final = Script(_FREES + _HEAD + _DELETE)
