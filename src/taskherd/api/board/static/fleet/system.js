// @ts-check
// What waits for a runner, and the parts of taskherd itself: workers and queues.
import "../format.js";
import { taskPath } from "../api.js";
import { count, plural } from "../format.js";
import { title } from "../state.js";
import { waitsFor } from "../waits.js";
import { html, nothing } from "../vendor/lit-html/lit-html.js";

/**
 * @param {any[]} waiting
 * @param {any[]} pools
 */
export function waitingView(waiting, pools) {
  if (!waiting.length) return nothing;
  const all = pools.reduce((sum, each) => sum + each.waiting, 0);
  const listed = waiting.filter((each) => !each.deleted).length;
  return html`<div class="card"><table class="waits"><thead><tr><th scope="col">Task</th><th scope="col">Waits</th><th scope="col">For</th><th scope="col">Since</th></tr></thead>
    <tbody>${waiting.map((each) => html`<tr>
      <th scope="row" title=${each.name}>${each.deleted ? html`<span>${title(each)}</span>` : html`<a href=${taskPath(each)}>${title(each)}</a>`} <span class="faint">${each.owner_name}</span>${each.deleted ? html` <span class="pill">deleted</span>` : nothing}</th>
      <td class="soft wants" title=${each.type}>${each.deleted ? "to be cleared away" : waitsFor(each.type)}</td>
      <td class="for">${each.runner ? html`runner <b>${each.runner}</b>` : html`<span class="wide">any runner of </span>pool <b>${each.pool}</b>`}</td>
      <td class="soft since"><time-ago at=${each.since} form="age"></time-ago>${each.attempt > 1 ? html` <span class="faint">asked ${each.attempt} times</span>` : nothing}</td></tr>`)}</tbody></table></div>
    ${all > listed ? html`<p class="faint small">These wait longest, of ${count(all)}.</p>` : nothing}`;
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
