// @ts-check
// Where the time went: a bar of the time in each state, drawn to scale, and what it adds up to in words.
import { now } from "../api.js";
import { exact, span } from "../format.js";
import { html, nothing, svg } from "../vendor/lit-html/lit-html.js";

/** @typedef {{since: string, now: string, totals: {state: string, seconds: number}[], spans: {state: string, since: string, until: string | null}[]}} Durations */

/** @type {Record<string, string>} the class of each state's colour */
const COLORS = {
  starting: "paused", working: "working", waiting: "waiting", idle: "idle", complete: "done", failed: "failed", lost: "lost", paused: "paused",
};
const WIDTH = 1000;
const LEAST = 3; // units of a span that is shorter, so that it can be seen

/** @param {Durations} durations */
export function spentView({ since, now: readAt, totals, spans }) {
  const end = now();
  const begin = Math.min(Date.parse(since), ...spans.map((each) => Date.parse(each.since)));
  const whole = Math.max(1, end - begin);
  const live = spans.at(-1);
  const passed = Math.max(0, (end - Date.parse(readAt)) / 1000); // since it was read, in the state that goes on
  const grown = totals.map((each) => (each.state === live?.state && !live.until ? { ...each, seconds: each.seconds + passed } : each));
  const words = grown.filter((each) => each.seconds >= 1).sort((one, other) => other.seconds - one.seconds);
  return html`<p class="small soft">In ${span(whole / 1000)}</p>
    <svg class="bar-of-time" viewBox="0 0 ${WIDTH} 10" preserveAspectRatio="none" role="img" aria-label=${`Time in each state: ${words.map(said).join(", ")}`}>
      ${spans.map((each) => {
        const from = ((Date.parse(each.since) - begin) / whole) * WIDTH;
        const to = (((each.until ? Date.parse(each.until) : end) - begin) / whole) * WIDTH;
        return svg`<rect class=${COLORS[each.state] || "idle"} x=${from} y="0" width=${Math.max(LEAST, to - from - 1)} height="10"><title>${each.state}, from ${exact(each.since)}${each.until ? ` to ${exact(each.until)}` : ""}</title></rect>`;
      })}</svg>
    ${words.length ? html`<ul class="legend">${words.map((each) => html`<li class=${COLORS[each.state] || "idle"}><i class="dot"></i>${said(each)}</li>`)}</ul>` : nothing}`;
}

/** @param {{state: string, seconds: number}} total */
function said({ state, seconds }) {
  return `${span(seconds)} ${state}`;
}
