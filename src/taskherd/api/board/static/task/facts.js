// @ts-check
// Facts about a task, and why it is as it is.
import "../format.js";
import { compact, money, plural, term } from "../format.js";
import { waitsFor } from "../waits.js";
import { html, nothing } from "../vendor/lit-html/lit-html.js";

/**
 * @param {any} task
 * @param {any} explained null until it is there
 */
export function factsView(task, explained) {
  const health = task.workspace_agent_health;
  const template = task.template_display_name || task.template_name;
  /** @type {[string, any][]} */
  const facts = [
    ["Owner", found("owner", task.owner_name)],
    ["Template", found("template", task.template_name, template)],
    ["Name", html`<code>${task.owner_name}/${task.name}</code>`],
    ["Workspace", `${task.workspace_status || "not built yet"}${task.workspace_build_number > 1 ? `, start ${task.workspace_build_number}` : ""}`],
    ["Agent", health ? (health.healthy ? "connected" : health.reason) : "none yet"],
    ["Runner", explained?.runner ? found("runner", explained.runner) : ""],
    ["Pool", explained ? found("pool", explained.pool) : ""],
    ["Usage", usage(task.usage)],
    ["Context", task.usage?.context_size ? context(task.usage) : ""],
    ["Labels", Object.entries(task.labels || {}).map((each) => each.join("=")).map((each) => html`<a class="chip" href=${address("label", each)}>${each}</a> `)],
    ["Created", html`<time-ago at=${task.created_at}></time-ago>`],
    ["Changed", html`<time-ago at=${task.updated_at}></time-ago>`],
  ];
  return html`<dl class="facts">${facts.map(([name, value]) => (value && value.length !== 0 ? html`<dt>${name}</dt><dd>${value}</dd>` : nothing))}</dl>`;
}

/**
 * A link to the tasks that have the same.
 * @param {string} key
 * @param {string} value
 */
function found(key, value, label = value) {
  return html`<a class="link" href=${address(key, value)}>${label}</a>`;
}

/**
 * Where the tasks are that have this.
 * @param {string} key
 * @param {string} value
 */
function address(key, value) {
  return `/tasks?q=${encodeURIComponent(term(key, value)).replaceAll("%3A", ":")}`;
}

/** @param {any} used */
function usage(used) {
  if (!used) return "";
  const cached = (used.cache_read_tokens || 0) + (used.cache_write_tokens || 0);
  const tokens = (used.input_tokens || 0) + (used.output_tokens || 0) + cached;
  const parts = [tokens ? `${compact(tokens)} tokens` : "", money(used.cost)].filter(Boolean);
  const detail = `${compact(used.input_tokens || 0)} in, ${compact(used.output_tokens || 0)} out, ${compact(cached)} cached`;
  return parts.length ? html`${parts.join(" · ")}${tokens ? html`<span class="fact-more tiny soft">${detail}</span>` : nothing}` : "";
}

/** @param {any} used */
function context(used) {
  return `${Math.round((100 * used.context_used) / used.context_size)} % of ${compact(used.context_size)}`;
}

/**
 * Why the task is as it is, and what would change it, in the words of the API.
 * @param {any} explained
 * @param {any} task
 */
export function whyView(explained, task) {
  if (!explained) return nothing;
  const { status, current_state: state, health, agent_exit: exit, stalled_since: stalled } = explained;
  const reasons = new Map([[status.rule, status.because]]);
  if (exit.value) reasons.set(exit.rule, exit.because);
  if (stalled.value) reasons.set(stalled.rule, stalled.because);
  if (state.value && !exit.value) reasons.set(state.rule, state.because); // of an agent that has ended, the end says more
  if (health.value && !health.value.healthy) reasons.set(health.rule, health.because);
  const asked = task.requests_open ? html`<p>Its agent asked ${plural(task.requests_open, "question")} and waits for ${task.requests_open === 1 ? "the answer" : "the answers"}.</p>` : nothing;
  return html`${asked}${[...new Set(reasons.values())].map((each) => html`<p>${each}</p>`)}
    ${explained.restart_at ? html`<p>It is started again by itself <time-ago at=${explained.restart_at}></time-ago>.</p>` : nothing}
    ${explained.requests.length ? html`<p class="soft">No runner has answered yet. It waits ${explained.requests.map((/** @type {any} */ each) => html`
      <span class="waiting-for"><span title=${each.type}>${waitsFor(each.type)}</span>${each.target_runner ? html` on ${each.target_runner}` : nothing}, asked ${each.attempt} ${each.attempt === 1 ? "time" : "times"} since <time-ago at=${each.created_at} form="clock"></time-ago></span>`)}</p>` : nothing}`;
}

/**
 * What waits for the agent, below the conversation.
 * @param {any} explained
 */
export function inboxView(explained) {
  return (explained?.inbox || []).map((/** @type {any} */ each) => html`<div class="said person queued">
    <p class="who">${each.state === "queued" ? "Waits until the agent is ready" : "On its way to the agent"} · <time-ago at=${each.created_at} form="clock"></time-ago></p>
    <div class="prose" dir="auto">${each.input}</div></div>`);
}
