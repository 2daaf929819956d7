// Makes the JSON schema that tests/test_dashboards_schema.py holds the dashboards against, from the types of
// @grafana/schema (Apache-2.0). Usage, after npm install: node schema.mjs ../../tests/data/FILE.json.gz
import { createGenerator } from 'ts-json-schema-generator';
import { readFileSync, writeFileSync } from 'node:fs';
import { gzipSync } from 'node:zlib';

const TYPES = 'node_modules/@grafana/schema/dist/types/raw';
const PANELS = ['timeseries', 'stat', 'bargauge', 'table'];

function schemaOf(path, type) {
  const generator = createGenerator({ path, type, skipTypeCheck: true, topRef: true });
  return withoutProse(generator.createSchema(type));
}

// Descriptions are nine tenths of the size and decide nothing.
function withoutProse(node) {
  if (Array.isArray(node)) return node.map(withoutProse);
  if (node === null || typeof node !== 'object') return node;
  const entries = Object.entries(node).filter(
    ([key, value]) => !(['description', 'deprecated', '$comment'].includes(key) && typeof value === 'string'),
  );
  return Object.fromEntries(entries.map(([key, value]) => [key, withoutProse(value)]));
}

// Options are written in part and completed by the panel's defaults: what is there must be right, nothing must
// be there.
function partial(schema) {
  const root = schema.$ref.replace('#/definitions/', '');
  delete schema.definitions[root].required;
  return schema;
}

const version = JSON.parse(readFileSync('node_modules/@grafana/schema/package.json')).version;
const dashboard = schemaOf(`${TYPES}/dashboard/x/types.gen.d.ts`, 'Dashboard');

// The raw type knows the built-in data source's annotations only ("TODO: this should be a regular DataQuery"); the
// package's public type (veneer/dashboard.types.d.ts) has a data query there. The two keys beside it are what
// Grafana's Prometheus data source reads from an annotation.
const annotation = dashboard.definitions.AnnotationQuery.properties;
annotation.target = {
  type: 'object',
  properties: { refId: { type: 'string' }, expr: { type: 'string' } },
  required: ['refId', 'expr'],
};
annotation.titleFormat = { type: 'string' };
annotation.tagKeys = { type: 'string' };

const panels = Object.fromEntries(
  PANELS.map((panel) => {
    const path = `${TYPES}/composable/${panel}/panelcfg/x/types.gen.d.ts`;
    const both = { options: partial(schemaOf(path, 'Options')) };
    try {
      both.custom = partial(schemaOf(path, 'FieldConfig'));
    } catch (error) {
      if (!String(error.message).includes('No root type')) throw error;
      both.custom = { type: 'object', additionalProperties: false };
    }
    return [panel, both];
  }),
);

const [target] = process.argv.slice(2);
if (!target) throw new Error('usage: node schema.mjs FILE.json.gz');
const source = `@grafana/schema ${version} (Apache-2.0), ts-json-schema-generator`;
writeFileSync(target, gzipSync(JSON.stringify({ source, dashboard, panels }), { level: 9 }));
console.log(`${target}: ${source}`);
