// @ts-check
// Pools, each with its runners: who is connected, how many agents it runs, when it was last heard.
import "../format.js";
import { count, plural } from "../format.js";
import { repeat } from "../vendor/lit-html/directives/repeat.js";
import { html, nothing } from "../vendor/lit-html/lit-html.js";

/** @param {any[]} pools */
export function poolsView(pools) {
  if (!pools.length) {
    return html`<div class="card empty"><h3>No pools</h3><p>A pool is there with the first template whose <code>run.pool</code> names it.
      Add templates to the directory file, and apply it with <code>taskherd directory apply</code>.</p></div>`;
  }
  return html`<div class="card pools">${repeat(pools, (/** @type {any} */ each) => each.name, poolView)}</div>`;
}

/** @param {any} pool */
function poolView(pool) {
  const facts = [
    plural(pool.agents, "agent"),
    pool.queue?.messages ? `${plural(pool.queue.messages, "message")} queued` : "",
    pool.waiting ? `${plural(pool.waiting, "task")} waiting` : "",
  ].filter(Boolean).join(" · ");
  return html`<section class="pool" aria-label=${`Pool ${pool.name}`}><div class="pool-head"><h3>${pool.name}</h3>
      <span class="soft small">${facts}${pool.waiting_since ? html` for <time-ago at=${pool.waiting_since} form="age"></time-ago>` : nothing}</span>
      ${pool.templates.length ? html`<span class="faint small templates">${pool.templates.map((/** @type {string} */ each) => html`
        <a class="link" href=${`/tasks?q=template:${encodeURIComponent(each)}`}>${each}</a>`)}</span>` : nothing}</div>
    ${pool.runners.length ? html`<table class="runners"><thead><tr><th scope="col">Runner</th><th scope="col">State</th>
        <th scope="col" class="number">Agents</th><th scope="col" class="number">Queued</th><th scope="col">Last heard</th></tr></thead>
      <tbody>${repeat(pool.runners, (/** @type {any} */ each) => each.name, runnerView)}</tbody></table>`
    : html`<p class="soft small">No runner has said hello for this pool. Start one: <code>TASKHERD_RUNNER_POOL=${pool.name} taskherd runner</code></p>`}</section>`;
}

/** @param {any} runner */
function runnerView(runner) {
  const { queue } = runner;
  const [word, color] = !queue ? ["no queue seen", "idle"] : queue.consumers ? ["connected", "idle"] : ["not connected", "lost"];
  return html`<tr><th scope="row">${runner.name}</th>
    <td><span class="state ${color}"><i class="dot"></i>${word}</span>${runner.lost ? html`
      <a class="link small" href=${`/tasks?q=health:lost+runner:${encodeURIComponent(runner.name)}`} aria-label=${`lost tasks of ${runner.name}`}>${plural(runner.lost, "lost task")}</a>` : nothing}</td>
    <td class="number"><a class="link" href=${`/tasks?q=runner:${encodeURIComponent(runner.name)}`} aria-label=${`${plural(runner.agents, "agent")} on ${runner.name}`}>${count(runner.agents)}</a></td>
    <td class="number">${queued(queue?.messages ?? null, runner.waiting_since)}</td>
    <td class="soft">${runner.last_heard_at ? html`<time-ago at=${runner.last_heard_at}></time-ago>` : "never"}</td></tr>`;
}

/**
 * How much is queued for a runner, which only who sees all tasks may know, and since when a task of the viewer waits for it.
 * @param {number | null} messages
 * @param {string | null} since
 */
function queued(messages, since) {
  const age = since ? html`<time-ago at=${since} form="age"></time-ago>` : nothing;
  if (messages === null) return since ? html`for ${age}` : "–";
  return html`${count(messages)}${since ? html`, ${age}` : nothing}`;
}
