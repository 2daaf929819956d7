// Draws dashboards into PNGs: node draw.mjs JOB.json, where the job says what, from which Prometheus, and where to.
// Prints one line of JSON for each dashboard: its panels, with how many series each drew.
import { build } from 'esbuild';
import { createServer } from 'node:http';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, extname, join, normalize } from 'node:path';
import { fileURLToPath } from 'node:url';
import { chromium } from 'playwright-core';

const DEADLINE_MS = 60_000;
const TYPES = { '.html': 'text/html', '.js': 'text/javascript', '.css': 'text/css', '.json': 'application/json' };
const here = dirname(fileURLToPath(import.meta.url));
const job = JSON.parse(readFileSync(process.argv[2], 'utf8'));
const grafanaPublic = join(here, 'node_modules/@grafana/ui/dist/public');
const bundle = mkdtempSync(join(tmpdir(), 'dashboard-pictures-'));

await build({
  entryPoints: [join(here, 'page.jsx')],
  outfile: join(bundle, 'page.js'),
  bundle: true,
  format: 'iife',
  jsx: 'automatic',
  alias: { 'react-router-dom-v5-compat': 'react-router-dom' },
  define: { 'process.env.NODE_ENV': '"production"', global: 'globalThis' },
  loader: { '.svg': 'dataurl', '.png': 'dataurl', '.woff2': 'dataurl', '.ttf': 'dataurl' },
  logLevel: 'error',
});

const PAGE =
  '<!doctype html><meta charset="utf-8"><link rel="stylesheet" href="/page.css">' +
  '<body style="margin:0"><div id="root"></div><script src="/page.js"></script>';
const places = { '/dashboards/': job.dashboards, '/public/build/': grafanaPublic, '/': bundle };
const server = createServer((request, response) => {
  const path = normalize(decodeURIComponent(new URL(request.url, 'http://localhost').pathname));
  if (path === '/') return response.setHeader('content-type', 'text/html').end(PAGE);
  const prefix = Object.keys(places).find((one) => path.startsWith(one));
  try {
    const body = readFileSync(join(places[prefix], path.slice(prefix.length)));
    response.setHeader('content-type', TYPES[extname(path)] ?? 'application/octet-stream').end(body);
  } catch {
    response.writeHead(404).end();
  }
});
await new Promise((ready) => server.listen(0, '127.0.0.1', ready));

const browser = await chromium.launch({ executablePath: job.chromium, args: ['--no-sandbox'] });
try {
  for (const drawing of job.drawings) {
    const page = await browser.newPage({ viewport: { width: job.width_px, height: 900 } });
    const problems = [];
    page.on('pageerror', (error) => problems.push(String(error)));
    const question = JSON.stringify({ ...job.question, width_px: job.width_px, dashboard: drawing.dashboard });
    await page.goto(`http://127.0.0.1:${server.address().port}/?question=${encodeURIComponent(question)}`);
    await page.waitForFunction('window.panels || window.failed', null, { timeout: DEADLINE_MS }).catch((error) => {
      throw new Error(`${drawing.dashboard} was not drawn: ${error.message}; on the page: ${problems.join('; ')}`);
    });
    const failed = await page.evaluate('window.failed');
    if (failed) throw new Error(`${drawing.dashboard}: ${failed}`);
    // What lies outside of the window is not painted.
    const height = await page.evaluate('document.documentElement.scrollHeight');
    await page.setViewportSize({ width: job.width_px, height });
    await page.waitForLoadState('networkidle', { timeout: DEADLINE_MS });
    await page.waitForTimeout(500); // canvases are painted in the next frames
    await page.screenshot({ path: drawing.picture, fullPage: true });
    const panels = await page.evaluate('window.panels');
    console.log(JSON.stringify({ dashboard: drawing.dashboard, panels, problems }));
    await page.close();
  }
} finally {
  await browser.close();
  server.close();
  rmSync(bundle, { recursive: true });
}
