// Draws one generated dashboard with Grafana's own components: PanelChrome, TimeSeries, BigValue, BarGauge,
// TableNG and VizLegend of @grafana/ui; units, field overrides, reducers and transformations of
// @grafana/data. What is ours is the layout, the substitution of variables and the requests to Prometheus: so it
// shows that panels draw real data in the right units, and not that a Grafana server imports the file.
import 'uplot/dist/uPlot.min.css';
import React from 'react';
import { createRoot } from 'react-dom/client';
import { lastValueFrom } from 'rxjs';
import {
  EventBusSrv,
  FieldConfigOptionsRegistry,
  FieldType,
  ThemeContext,
  applyFieldOverrides,
  createTheme,
  dateTime,
  getDisplayProcessor,
  getDisplayValueAlignmentFactors,
  getFieldDisplayName,
  getFieldDisplayValues,
  identityOverrideProcessor,
  renderLegendFormat,
  standardTransformers,
  standardTransformersRegistry,
  toDataFrame,
  transformDataFrame,
} from '@grafana/data';
import {
  BarGauge,
  BigValue,
  GlobalStyles,
  PanelChrome,
  PanelContextProvider,
  TimeSeries,
  VizRepeater,
} from '@grafana/ui';
import { TableNG } from '@grafana/ui/unstable';

const ROW = 30;
const GAP = 8;
const COLUMNS = 24;
const question = JSON.parse(new URLSearchParams(location.search).get('question'));
const theme = createTheme({ colors: { mode: question.theme } });
const range = {
  from: dateTime(question.start_s * 1000),
  to: dateTime(question.end_s * 1000),
  raw: { from: 'now-15m', to: 'now' },
};
const DEFAULTS = ['unit', 'min', 'max', 'decimals', 'displayName', 'noValue', 'thresholds', 'mappings', 'color'];
const CUSTOM = [
  ...['axisPlacement', 'axisLabel', 'axisSoftMin', 'axisSoftMax', 'drawStyle', 'lineInterpolation'],
  ...['lineWidth', 'lineStyle', 'fillOpacity', 'gradientMode', 'spanNulls', 'showPoints', 'pointSize'],
  ...['stacking', 'scaleDistribution', 'hideFrom', 'thresholdsStyle', 'barAlignment'],
  ...['align', 'cellOptions', 'inspect', 'filterable', 'width'],
];

const transformers = new Map(Object.values(standardTransformers).map((one) => [one.id, one])); // some have two names
standardTransformersRegistry.setInit(() =>
  [...transformers.values()].map((transformer) => ({
    id: transformer.id,
    name: transformer.name,
    transformation: () => Promise.resolve(transformer),
    editor: () => null,
  })),
);

const registry = new FieldConfigOptionsRegistry();
for (const [ids, isCustom] of [[DEFAULTS, false], [CUSTOM, true]]) {
  for (const id of ids) {
    registry.register({
      id: isCustom ? `custom.${id}` : id,
      path: id,
      name: id,
      isCustom,
      process: identityOverrideProcessor,
      shouldApply: () => true,
      override: () => null,
      editor: () => null,
      settings: {},
    });
  }
}

function substitute(text) {
  return text.replace(/\$(?:\{(\w+)\}|(\w+))/g, (whole, braced, bare) => {
    const name = braced ?? bare;
    if (!(name in question.variables)) throw new Error(`no value for ${whole}`);
    return question.variables[name];
  });
}

async function ask(path, wanted) {
  const answer = await fetch(`${question.prometheus}/api/v1/${path}?${new URLSearchParams(wanted)}`);
  const body = await answer.json();
  if (body.status !== 'success') throw new Error(`${wanted.query}: ${body.error}`);
  return body.data.result;
}

// As Grafana's time series panel has it: what cannot be drawn is a gap.
const finite = (number) => (Number.isFinite(number) ? number : null);

async function timeFrames(target) {
  const step = question.step_s;
  // An instant query is a range of one point.
  const start = target.instant ? question.end_s : question.start_s;
  const series = await ask('query_range', { query: substitute(target.expr), start, end: question.end_s, step });
  return series.map(({ metric, values }) =>
    toDataFrame({
      refId: target.refId,
      fields: [
        {
          name: 'Time',
          type: FieldType.time,
          values: values.map(([at]) => at * 1000),
          config: { interval: step * 1000 },
        },
        {
          name: 'Value',
          type: FieldType.number,
          labels: metric,
          values: values.map(([, value]) => finite(Number(value))),
          config: { displayNameFromDS: renderLegendFormat(target.legendFormat, metric) },
        },
      ],
    }),
  );
}

async function tableFrames(target, several) {
  const samples = await ask('query', { query: substitute(target.expr), time: question.end_s });
  if (!samples.length) return [];
  const labels = [...new Set(samples.flatMap(({ metric }) => Object.keys(metric)))].sort();
  return [
    toDataFrame({
      refId: target.refId,
      fields: [
        { name: 'Time', type: FieldType.time, values: samples.map(({ value }) => value[0] * 1000) },
        ...labels.map((label) => ({
          name: label,
          type: FieldType.string,
          values: samples.map(({ metric }) => metric[label] ?? ''),
        })),
        {
          name: several ? `Value #${target.refId}` : 'Value',
          type: FieldType.number,
          values: samples.map(({ value }) => Number(value[1])),
        },
      ],
    }),
  ];
}

async function framesOf(panel) {
  const several = panel.targets.length > 1;
  const asked = await Promise.all(
    panel.targets.map((target) =>
      target.format === 'table' ? tableFrames(target, several) : timeFrames(target),
    ),
  );
  let frames = asked.flat();
  if (panel.transformations?.length) {
    frames = await lastValueFrom(transformDataFrame(panel.transformations, frames));
  }
  return applyFieldOverrides({
    data: frames,
    fieldConfig: panel.fieldConfig,
    fieldConfigRegistry: registry,
    replaceVariables: (text) => text,
    theme,
    timeZone: 'utc',
  });
}

function displayValues(panel, frames) {
  return getFieldDisplayValues({
    fieldConfig: panel.fieldConfig,
    reduceOptions: panel.options.reduceOptions,
    replaceVariables: (text) => text,
    theme,
    data: frames,
    sparkline: panel.options.graphMode === 'area',
    timeZone: 'utc',
  });
}

// Grafana's panels name every field before they draw.
function named(frames) {
  for (const frame of frames) {
    for (const field of frame.fields) {
      field.state = { ...field.state, displayName: getFieldDisplayName(field, frame, frames) };
    }
  }
  return frames;
}

const DRAW = {
  timeseries: (panel, frames, width, height) => (
    <TimeSeries
      frames={named(frames)}
      timeRange={range}
      timeZone="utc"
      width={width}
      height={height}
      legend={panel.options.legend}
    />
  ),
  stat: (panel, frames, width, height) => (
    <VizRepeater
      getValues={() => displayValues(panel, frames)}
      getAlignmentFactors={getDisplayValueAlignmentFactors}
      width={width}
      height={height}
      source={frames}
      autoGrid
      renderCounter={0}
      orientation={panel.options.orientation}
      renderValue={({ value, alignmentFactors, width, height, count }) => (
        <BigValue
          value={value.display}
          count={count}
          sparkline={value.sparkline}
          colorMode={panel.options.colorMode}
          graphMode={panel.options.graphMode}
          justifyMode={panel.options.justifyMode}
          textMode={panel.options.textMode}
          alignmentFactors={alignmentFactors}
          width={width}
          height={height}
          theme={theme}
          wideLayout
        />
      )}
    />
  ),
  bargauge: (panel, frames, width, height) => (
    <VizRepeater
      getValues={() => displayValues(panel, frames)}
      getAlignmentFactors={getDisplayValueAlignmentFactors}
      width={width}
      height={height}
      source={frames}
      itemSpacing={10}
      minVizHeight={16}
      maxVizHeight={300}
      renderCounter={0}
      orientation={panel.options.orientation}
      renderValue={({ value, alignmentFactors, orientation, width, height, count }) => (
        <BarGauge
          value={value.display}
          field={value.field}
          display={getDisplayProcessor({ field: { config: value.field, type: FieldType.number }, theme })}
          alignmentFactors={alignmentFactors}
          orientation={orientation}
          displayMode={panel.options.displayMode}
          namePlacement={panel.options.namePlacement}
          showUnfilled={panel.options.showUnfilled}
          valueDisplayMode={panel.options.valueMode}
          width={width}
          height={height}
          theme={theme}
          itemSpacing={10}
          count={count}
        />
      )}
    />
  ),
  table: (panel, frames, width, height) => (
    <TableNG
      data={named(frames)[0]}
      width={width}
      height={height}
      noHeader={!panel.options.showHeader}
      cellHeight={panel.options.cellHeight}
      fieldConfig={panel.fieldConfig}
      timeRange={range}
    />
  ),
};

function Panel({ panel, frames, error }) {
  const { x, y, w, h } = panel.gridPos;
  const column = (question.width_px - GAP) / COLUMNS;
  const place = {
    position: 'absolute',
    left: GAP + x * column,
    top: GAP + y * (ROW + GAP),
    width: w * column - GAP,
    height: h * (ROW + GAP) - GAP,
  };
  if (panel.type === 'row') {
    return <div style={{ ...place, ...theme.typography.h5, color: theme.colors.text.primary }}>{panel.title}</div>;
  }
  const empty = frames.every((frame) => frame.length === 0) || frames.length === 0;
  const noData = panel.fieldConfig.defaults.noValue ?? 'No data';
  return (
    <div style={place}>
      <PanelChrome title={panel.title} description={panel.description} width={place.width} height={place.height}>
        {(width, height) => {
          if (error) return <div style={{ color: theme.colors.error.text }}>{error}</div>;
          if (empty && panel.type === 'stat') {
            return (
              <BigValue
                value={{ text: noData, numeric: NaN, color: theme.colors.success.text }}
                colorMode={panel.options.colorMode}
                graphMode="none"
                width={width}
                height={height}
                theme={theme}
              />
            );
          }
          if (empty) {
            const style = { ...theme.typography.body, color: theme.colors.text.secondary, textAlign: 'center' };
            return <div style={{ ...style, paddingTop: height / 2 - 12 }}>{noData}</div>;
          }
          return DRAW[panel.type](panel, frames, width, height);
        }}
      </PanelChrome>
    </div>
  );
}

async function main() {
  const board = await (await fetch(`/dashboards/${question.dashboard}`)).json();
  const asked = await Promise.all(
    board.panels.map(async (panel) => {
      if (panel.type === 'row') return { panel, frames: [] };
      try {
        return { panel, frames: await framesOf(panel) };
      } catch (error) {
        return { panel, frames: [], error: String(error) };
      }
    }),
  );
  const bottom = Math.max(...board.panels.map(({ gridPos }) => gridPos.y + gridPos.h));
  const context = { eventsScope: 'pictures', eventBus: new EventBusSrv(), sync: () => 0 };
  const style = {
    position: 'relative',
    width: question.width_px,
    height: bottom * (ROW + GAP) + GAP,
    background: theme.colors.background.canvas,
  };
  createRoot(document.getElementById('root')).render(
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      <PanelContextProvider value={context}>
        <h3 style={{ margin: 0, padding: '8px 8px 0', color: theme.colors.text.primary }}>{board.title}</h3>
        <div style={style}>
          {asked.map((one) => (
            <Panel key={one.panel.id} {...one} />
          ))}
        </div>
      </PanelContextProvider>
    </ThemeContext.Provider>,
  );
  window.panels = asked
    .filter(({ panel }) => panel.type !== 'row')
    .map(({ panel, frames, error }) => ({
      title: panel.title,
      type: panel.type,
      series: frames.filter(({ fields }) =>
        fields.some(({ type, values }) => type !== FieldType.time && values.some((value) => value !== null)),
      ).length,
      error: error ?? '',
    }));
}

main().catch((error) => {
  window.failed = String(error?.stack ?? error);
});
