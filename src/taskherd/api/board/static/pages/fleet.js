// @ts-check
// The fleet: what waits for what, pools and runners, workers and queues, dead letters, and the rates of the last day.
import * as api from "../api.js";
import { showFeedState } from "../feed.js";
import * as keys from "../keys.js";
import { count, plural } from "../format.js";
import { html, nothing, render } from "../vendor/lit-html/lit-html.js";
import { ratesChart } from "../fleet/chart.js";
import { DeadLetters } from "../fleet/letters.js";
import { poolsView } from "../fleet/pools.js";
import { WaitingTasks, queuesView, workersView } from "../fleet/system.js";
import { inUse, onLeave } from "../steady.js";
import { showSource, sourceButton } from "../task/commands.js";

const EVERY = 5_000; // milliseconds between two reads
const LISTS = ".waits, .pools, .fleet-letters"; // what somebody may point at while rows above it come and go

/** @type {import("../router.js").Page} */
export default function fleet(view) {
  const { root, signal } = view;
  view.setTitle("Fleet");
  let timer = 0;
  let failed = "";
  /** @type {any} */
  let known = null;
  const letters = new DeadLetters(() => signal.aborted || show(), signal);
  const waiting = new WaitingTasks();
  const isHeld = () => [...root.querySelectorAll(LISTS)].some(inUse);
  const read = async () => {
    clearTimeout(timer);
    if (!document.hidden) {
      const answer = await api.get("/fleet", { signal });
      if (signal.aborted) return;
      if (answer.ok) known = answer.value;
      if (known?.sees_all) letters.update(known.dead_letters);
      failed = answer.ok || answer.status === 0 ? "" : api.explain(answer);
      showFeedState(answer.ok || answer.status ? "live" : "offline");
      show();
    }
    timer = setTimeout(read, EVERY);
  };
  const show = () => {
    if (known) waiting.update(known.waiting, isHeld());
    letters.settle(inUse(root.querySelector(".fleet-letters")));
    render(html`${failed ? html`<p class="notice bad" role="alert">${failed}</p>` : nothing}${known ? page(known, waiting, letters) : failed ? nothing : html`<div class="loading"></div>`}`, root);
    if (!known && !failed) return;
    for (const list of /** @type {NodeListOf<HTMLElement>} */ (root.querySelectorAll(LISTS))) {
      if (list.dataset.watched) continue;
      list.dataset.watched = "yes";
      onLeave(list, () => signal.aborted || show());
    }
    root.dataset.ready = "";
    view.shown();
  };
  show();
  read();
  document.addEventListener("visibilitychange", () => document.hidden || read(), { signal });
  signal.addEventListener("abort", () => clearTimeout(timer), { once: true });
  keys.bind("Fleet", [{ keys: "y", does: "Commands and raw JSON", run: () => showSource(SOURCE) }], signal);
}

const SOURCE = { title: "The fleet", path: "/fleet", cli: ["fleet"] };

/**
 * @param {any} known
 * @param {WaitingTasks} waiting
 * @param {DeadLetters} letters
 */
function page(known, waiting, letters) {
  return html`
    <section><div class="head"><h1>${bottleneck(known)}</h1>
      ${sourceButton(SOURCE, "right")}</div>
      ${known.broker ? nothing : html`<p class="notice">RabbitMQ does not answer the API at the moment, so the depths of queues are not known.</p>`}
      ${waiting.view(known.pools)}</section>
    <section><div class="head"><h2>Last 24 hours</h2>${known.sees_all ? nothing : html`<span class="faint small">of the tasks that you may see</span>`}</div>${ratesChart(known.rates)}</section>
    <section><div class="head"><h2>Pools and runners</h2><span class="faint">${count(known.pools.length)}</span></div>${poolsView(known.pools)}</section>
    ${known.sees_all ? html`
      <section class="fleet-system">
        <div><div class="head"><h2>Workers</h2><span class="faint">${count(known.workers.length)}</span></div>${workersView(known.workers)}</div>
        <div><div class="head"><h2>Queues</h2></div>${queuesView(known.queues, known.workers)}</div></section>
      <section class="fleet-letters">${letters.view(known.dead_letters)}</section>`
    : html`<p class="faint small">Workers, the depths of queues and dead letters are shown to admins of all organizations.</p>`}`;
}

/**
 * Whether a runner is known not to be connected: nobody consumes from its queue, or it was never heard, and so has none.
 * @param {any} runner
 */
function isAway({ queue, last_heard_at: heard }) {
  return queue ? !queue.consumers : !heard;
}

/**
 * What holds the fleet up, in one line.
 * @param {any} known
 */
function bottleneck({ broker, pools, workers, waiting, sees_all: all }) {
  const stuck = pools.filter((/** @type {any} */ each) => each.waiting);
  if (workers && !workers.length) return "No worker runs: nothing is processed";
  const alone = broker && stuck.find((/** @type {any} */ each) => each.runners.every(isAway));
  if (alone) return `${plural(alone.waiting, "task")} ${alone.waiting === 1 ? "waits" : "wait"}: no runner of pool ${alone.name} is connected`;
  if (workers?.some((/** @type {any} */ each) => !each.drained_since)) return "Reports wait: the workers are behind";
  const most = stuck.sort((/** @type {any} */ one, /** @type {any} */ other) => other.waiting - one.waiting)[0];
  if (most) return `${plural(most.waiting, "task")} ${most.waiting === 1 ? "waits" : "wait"} for pool ${most.name}`;
  if (waiting.length) return "Nothing waits but what is left of deleted tasks";
  const agents = pools.reduce((/** @type {number} */ sum, /** @type {any} */ each) => sum + each.agents, 0);
  const nothing = all ? "nothing waits" : "nothing of yours waits"; // others may share its pools
  return agents ? `${plural(agents, "agent")} connected, ${nothing}` : `${nothing[0].toUpperCase()}${nothing.slice(1)}`;
}
