// @ts-check
// Rates by hour as bars: what was created, what completed and what failed. Drawn as SVG, and told in a table.
import { count } from "../format.js";
import { html, svg } from "../vendor/lit-html/lit-html.js";

/** @typedef {{hour: string, created: number, completed: number, failed: number}} Rate */

const SERIES = /** @type {const} */ ([["created", "working"], ["completed", "done"], ["failed", "failed"]]);
const HEIGHT = 96, SLOT = 40, BAR = 10;
const hourFormat = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });

/** @param {Rate[]} rates */
export function ratesChart(rates) {
  const top = nice(Math.max(1, ...rates.flatMap((each) => SERIES.map(([name]) => each[name]))));
  const width = rates.length * SLOT;
  return html`<div class="card chart">
    <div class="chart-totals">${SERIES.map(([name, color]) => html`<div class=${color}><b>${count(total(rates, name))}</b><span><i class="dot"></i>${name}</span></div>`)}</div>
    <div class="chart-plot"><span class="chart-top faint tiny" aria-hidden="true">${count(top)} per hour</span>
      <svg viewBox="0 0 ${width} ${HEIGHT}" preserveAspectRatio="none" role="img" aria-label="Tasks created, completed and failed in each of the last 24 hours; the table below has the numbers">
        <line class="grid" x1="0" x2=${width} y1="0.5" y2="0.5"></line><line class="grid" x1="0" x2=${width} y1=${HEIGHT / 2} y2=${HEIGHT / 2}></line>
        ${rates.map((each, index) => svg`<g><title>${hour(each)}: ${each.created} created, ${each.completed} completed, ${each.failed} failed</title>
          <rect class="hit" x=${index * SLOT} y="0" width=${SLOT} height=${HEIGHT}></rect>
          ${SERIES.map(([name, color], place) => bar(each[name], top, index * SLOT + 4 + place * (BAR + 1), color))}</g>`)}</svg>
      <div class="chart-hours faint tiny" aria-hidden="true">${[0, 6, 12, 18].map((index) => html`<span>${rates[index] ? hour(rates[index]) : ""}</span>`)}<span>now</span></div></div>
    <details class="chart-table"><summary class="tiny soft">As a table</summary>
      <table><thead><tr><th scope="col">Hour</th>${SERIES.map(([name]) => html`<th scope="col" class="number">${name}</th>`)}</tr></thead>
        <tbody>${[...rates].reverse().map((each) => html`<tr><th scope="row">${hour(each)}</th>${SERIES.map(([name]) => html`<td class="number">${count(each[name])}</td>`)}</tr>`)}</tbody></table></details></div>`;
}

/**
 * @param {number} value
 * @param {number} top
 * @param {number} x
 * @param {string} color
 */
function bar(value, top, x, color) {
  const height = value ? Math.max(2, (value / top) * (HEIGHT - 2)) : 0;
  return svg`<rect class=${color} x=${x} y=${HEIGHT - height} width=${BAR} height=${height} rx="1.5"></rect>`;
}

/**
 * @param {Rate[]} rates
 * @param {"created" | "completed" | "failed"} name
 */
function total(rates, name) {
  return rates.reduce((sum, each) => sum + each[name], 0);
}

/** @param {Rate} rate */
function hour(rate) {
  return hourFormat.format(new Date(rate.hour));
}

/**
 * The next number that reads well on an axis.
 * @param {number} value
 */
function nice(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10].map((each) => each * power).find((each) => each >= value && Number.isInteger(each)) || value;
}
