// @ts-check
// What waits for a runner, and the parts of taskherd itself: workers and queues.
import "../format.js";
import { taskPath } from "../api.js";
import { count, plural } from "../format.js";
import { title } from "../state.js";
import { waitsFor } from "../waits.js";
import { SteadyList } from "../steady.js";
import { repeat } from "../vendor/lit-html/directives/repeat.js";
import { html, nothing } from "../vendor/lit-html/lit-html.js";

/** The tasks that wait, in rows that stay while somebody points at one of them, or at what is below them. */
export class WaitingTasks {
  constructor() {
    this.steady = new SteadyList();
    /** @type {Map<string, any>} what is shown, by its key */
    this.rows = new Map();
    /** @type {Set<string>} keys of what waits now */
    this.current = new Set();
  }

  /**
   * @param {any[]} waiting
   * @param {boolean} held whether the rows must stay
   */
  update(waiting, held) {
    const found = new Map();
    for (const each of waiting) {
      let key = `${each.id} ${each.type} ${each.since}`;
      while (found.has(key)) key += "+"; // a task may wait for several of the same
      found.set(key, each);
    }
    this.current = new Set(found.keys());
    const known = new Map([...this.rows, ...found]);
    this.rows = new Map(this.steady.update([...found.keys()], held).map((key) => [key, known.get(key)]));
  }

  /** @param {any[]} pools */
  view(pools) {
    return waitingView([...this.rows].map(([key, each]) => ({ ...each, key, over: !this.current.has(key) })), this.steady.heldBack, pools);
  }
}

/**
 * @param {any[]} waiting
 * @param {number} heldBack how many more are shown later
 * @param {any[]} pools
 */
function waitingView(waiting, heldBack, pools) {
  if (!waiting.length) return nothing;
  const all = pools.reduce((sum, each) => sum + each.waiting, 0);
  const listed = waiting.filter((each) => !each.deleted).length;
  return html`<div class="card"><table class="waits"><thead><tr><th scope="col">Task</th><th scope="col">Waits</th><th scope="col">For</th><th scope="col">Since</th></tr></thead>
    <tbody>${repeat(waiting, (/** @type {any} */ each) => each.key, (/** @type {any} */ each) => html`<tr class=${each.over ? "gone" : ""}>
      <th scope="row" title=${each.name}>${each.deleted ? html`<span>${title(each)}</span>` : html`<a href=${taskPath(each)}>${title(each)}</a>`} <span class="faint">${each.owner_name}</span>${each.deleted ? html` <span class="pill">deleted</span>` : nothing}</th>
      <td class="soft wants" title=${each.type}>${each.over ? "waits no more" : each.deleted ? "to be cleared away" : waitsFor(each.type)}</td>
      <td class="for">${each.runner ? html`runner <b>${each.runner}</b>` : html`<span class="wide">any runner of </span>pool <b>${each.pool}</b>`}</td>
      <td class="soft since"><time-ago at=${each.since} form="age"></time-ago>${each.attempt > 1 ? html` <span class="faint">asked ${each.attempt} times</span>` : nothing}</td></tr>`)}</tbody></table></div>
    ${heldBack ? html`<p class="faint small" role="status">${count(heldBack)} more when you leave this list.</p>`
      : all > listed ? html`<p class="faint small">These wait longest, of ${count(all)}.</p>` : nothing}`;
}

/** @param {any[]} workers */
export function workersView(workers) {
  if (!workers.length) return html`<p class="notice bad">No worker has been seen in the last minutes. Start one: <code>taskherd worker</code></p>`;
  return html`<ul class="card system-rows">${workers.map((each) => html`<li><b class="truncate">${each.id}</b>
    <span class="state ${each.drained_since ? "idle" : "paused"}"><i class="dot"></i>${each.drained_since ? "up to date" : "behind"}</span>
    <span class="faint small">seen <time-ago at=${each.seen_at}></time-ago>, runs since <time-ago at=${each.started_at} form="clock"></time-ago></span></li>`)}</ul>`;
}

/**
 * @param {any[]} queues
 * @param {any[]} workers
 */
export function queuesView(queues, workers) {
  if (!queues.length) return html`<p class="soft small">Nothing is known about the queues at the moment.</p>`;
  const drained = workers.map((each) => each.drained_since).filter(Boolean).sort().at(-1);
  return html`<ul class="card system-rows">${queues.map((each) => html`<li><b class="truncate">${each.name}</b><span class="number">${count(each.messages)} waiting${each.waiting_since ? html` for up to <time-ago at=${each.waiting_since} form="age"></time-ago>` : nothing}</span>
    <span class="faint small">${plural(each.consumers, "consumer")}</span></li>`)}</ul>
    <p class="faint small under">${drained ? html`Reports have been taken up at once since <time-ago at=${drained} form="clock"></time-ago>.` : "Reports wait."}</p>`;
}
