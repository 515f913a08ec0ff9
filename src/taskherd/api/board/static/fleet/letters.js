// @ts-check
// Dead letters: messages that could not be processed, what is in them, and replaying them. All of it comes from whoever sent them.
import "../format.js";
import * as api from "../api.js";
import { confirm, toast } from "../dialog.js";
import { bytes, count, plural } from "../format.js";
import { announce } from "../router.js";
import { SteadyList } from "../steady.js";
import { quote, sourceButton } from "../task/commands.js";
import { repeat } from "../vendor/lit-html/directives/repeat.js";
import { html, nothing } from "../vendor/lit-html/lit-html.js";

const PAGE = 100; // letters that are listed, and that one replay by id may have
const LOOKED_AT = 1000; // of the oldest, by the API
const NAMED = 5; // letters that the question before a replay names

/** @typedef {{messages: number | null, oldest_at: string | null, reasons: {reason: string, meaning: string | null, last_day: number}[]}} Summary */

/**
 * @typedef {object} Letter
 * @property {string} id
 * @property {string} reason
 * @property {string | null} meaning
 * @property {string} detail
 * @property {string | null} time
 * @property {string} queue
 * @property {string} exchange
 * @property {string} routing_key
 * @property {string | null} sender
 * @property {number | null} index
 * @property {number} length
 * @property {string} body
 * @property {boolean} body_cut
 * @property {string | null} replay_obstacle
 * @property {boolean} only_by_id
 */

export class DeadLetters {
  /**
   * @param {() => void} changed draws the page again
   * @param {AbortSignal} signal aborts when the page is left
   */
  constructor(changed, signal) {
    this.changed = changed;
    this.signal = signal;
    this.reason = "";
    /** @type {{dead_letters: Letter[], read: number, left: number} | null} */
    this.page = null;
    this.steady = new SteadyList();
    /** @type {Map<string, Letter>} what is shown, by its id: some of it may be gone already */
    this.rows = new Map();
    /** @type {{status: number, message: string, detail: string} | null} why they are not known */
    this.failed = null;
    /** @type {Set<string>} ids */
    this.selected = new Set();
    /** @type {Set<string>} those that letters were seen to have */
    this.reasons = new Set();
    /** @type {{id: string, why: string}[]} what the last replay has kept */
    this.kept = [];
    this.busy = false;
    this.loads = 0; // so far: only the answer of the last one counts
    /** @type {number | null | undefined} how many there were when they were read */
    this.messages = undefined;
  }

  /**
   * Read the letters again if their number has changed, or they could not be read.
   * @param {Summary} summary
   */
  update({ messages }) {
    const mayBeReadNow = this.failed !== null && this.failed.status !== 403;
    if ((messages === this.messages && !mayBeReadNow) || this.busy) return;
    this.messages = messages;
    this.load();
  }

  /**
   * Choose the rows to show.
   * @param {boolean} held whether they must stay
   */
  settle(held) {
    const letters = new Map(this.page?.dead_letters.map((each) => [each.id, each]));
    const known = new Map([...this.rows, ...letters]);
    this.rows = new Map(this.steady.update([...letters.keys()], held).flatMap((id) => {
      const letter = known.get(id);
      return letter ? [[id, letter]] : [];
    }));
  }

  get path() {
    return `/dead-letters?${new URLSearchParams({ limit: String(PAGE), ...(this.reason && { reason: this.reason }) })}`;
  }

  async load() {
    const load = (this.loads += 1);
    const answer = await api.get(this.path, { signal: this.signal, cached: false });
    if (this.signal.aborted || load !== this.loads) return;
    this.failed = answer.ok ? null : answer;
    if (answer.ok) {
      this.page = answer.value;
      const ids = new Set(answer.value.dead_letters.map((/** @type {Letter} */ each) => each.id));
      for (const { reason } of answer.value.dead_letters) this.reasons.add(reason);
      for (const id of this.selected) if (!ids.has(id)) this.selected.delete(id);
    }
    this.changed();
  }

  /** @param {string} reason */
  filter(reason) {
    this.reason = reason;
    this.page = null;
    this.steady.ids = [];
    this.selected.clear();
    this.changed();
    this.load();
  }

  /**
   * @param {string} id
   * @param {boolean} selected
   */
  select(id, selected) {
    if (selected) this.selected.add(id);
    else this.selected.delete(id);
    this.changed();
  }

  /** @param {Letter[]} letters */
  async replayThese(letters) {
    const vouched = letters.filter((each) => each.only_by_id);
    const what = letters.length === 1 ? "this dead letter" : plural(letters.length, "dead letter");
    const content = html`<ul class="letters-named">${letters.slice(0, NAMED).map((each) => html`<li><b>${each.meaning || "Its reason is unknown."}</b> <code>${each.reason}</code>,
        id <code>${each.id}</code><code class="truncate">${firstLine(each)}</code></li>`)}${letters.length > NAMED ? html`<li>and ${count(letters.length - NAMED)} more</li>` : nothing}</ul>
      <p>${letters.length === 1 ? "It is" : "They are"} published again to where ${letters.length === 1 ? "it" : "each"} came from, as the API's RabbitMQ user.</p>
      ${vouched.length ? html`<p role="alert"><b>You vouch for ${letters.length === 1 ? "it" : `${count(vouched.length)} of them`}:</b> no worker has found out that a trusted
        sender sent ${vouched.length === 1 ? "it" : "them"}. What ${vouched.length === 1 ? "it asks" : "they ask"} for will be done, in whoever's name ${vouched.length === 1 ? "it says" : "they say"}. The log keeps that it was you.</p>` : nothing}`;
    const action = vouched.length ? "Vouch and replay" : "Replay";
    if (await confirm({ title: `Replay ${what}?`, content, action, danger: vouched.length > 0 })) {
      await this.send({ ids: letters.map((each) => each.id) });
    }
  }

  /** @param {Letter[]} letters those that are listed */
  async replayAll(letters) {
    const kept = letters.filter((each) => each.only_by_id).length;
    const content = html`<p>Those of the oldest ${count(LOOKED_AT)} dead letters that have the reason <code>${this.reason}</code> are published again to where each came
      from, as the API's RabbitMQ user.</p>
      ${kept ? html`<p>${kept === letters.length ? "All that are listed" : `${count(kept)} of those that are listed`} will be kept, because no worker has found out that a
        trusted sender sent them: select what you vouch for.</p>` : nothing}`;
    if (await confirm({ title: "Replay all with this reason?", content, action: "Replay all" })) await this.send({ reason: this.reason });
  }

  /** @param {{ids: string[]} | {reason: string}} body */
  async send(body) {
    this.busy = true;
    this.changed();
    const answer = await api.send("POST", "/dead-letters/replay", body, { signal: this.signal });
    this.busy = false;
    if (this.signal.aborted) return;
    if (answer.ok) {
      const { replayed, kept, stopped } = answer.value;
      this.kept = kept;
      this.selected.clear();
      const rest = kept.length ? `, ${count(kept.length)} kept` : "";
      toast(`${count(replayed)} replayed${rest}.${stopped ? ` ${stopped}` : ""}`, { bad: !replayed || Boolean(stopped) });
    } else {
      toast(api.explain(answer), { bad: true });
    }
    await this.load();
    announce(plural(this.page?.dead_letters.length || 0, "dead letter"));
  }

  /** @param {Summary} summary */
  view(summary) {
    return html`<div class="head"><h2>Dead letters</h2>
        <span class="faint">${summary.messages === null ? "" : count(summary.messages)}${summary.messages && summary.oldest_at ? html`, oldest <time-ago at=${summary.oldest_at} form="age"></time-ago>` : nothing}</span>
        ${sourceButton({ title: "Dead letters", path: this.path, cli: [`dead list --limit ${PAGE}${this.reason && ` --reason ${quote(this.reason)}`}`] }, "right")}</div>
      ${this.letters(summary)}
      ${summary.reasons.length ? reasonsView(summary.reasons) : nothing}`;
  }

  /** @param {Summary} summary */
  letters(summary) {
    if (this.failed) return failureView(this.failed, () => this.load());
    if (!this.page) return html`<div class="card" aria-busy="true"><div class="loading"></div></div>`;
    const { dead_letters: letters, read, left } = this.page;
    const shown = [...this.rows.values()];
    const current = new Set(letters.map((each) => each.id));
    if (!shown.length && !this.reason) return html`<p class="soft small">None: all messages could be processed.</p>`;
    const selected = letters.filter((each) => this.selected.has(each.id));
    const reasons = [...new Set([...this.reasons, ...summary.reasons.map((each) => each.reason)])].sort();
    return html`<div class="letters-bar">
        <label>Reason <select @change=${(/** @type {Event} */ event) => this.filter(/** @type {HTMLSelectElement} */ (event.target).value)}>
          <option value="" ?selected=${!this.reason}>all</option>
          ${reasons.map((each) => html`<option value=${each} ?selected=${each === this.reason}>${each}</option>`)}</select></label>
        <button class="button" ?disabled=${!selected.length || this.busy} @click=${() => this.replayThese(selected)}>Replay ${selected.length ? count(selected.length) : ""} selected</button>
        ${this.reason ? html`<button class="button" ?disabled=${!letters.length || this.busy} @click=${() => this.replayAll(letters)}>Replay all of this reason</button>` : nothing}
        ${this.busy ? html`<span class="soft small" role="status">Replaying…</span>` : nothing}</div>
      ${this.kept.length ? html`<div class="notice letters-kept"><p>Kept, of the last replay:</p><ul>${this.kept.slice(0, PAGE).map((each) => html`<li><code>${each.id}</code> ${each.why}</li>`)}</ul></div>` : nothing}
      ${shown.length ? html`<ul class="card letters">${repeat(shown, (/** @type {Letter} */ each) => each.id, (/** @type {Letter} */ each) => this.letter(each, !current.has(each.id)))}</ul>`
        : html`<p class="soft small">None of the oldest ${count(read)} has this reason.</p>`}
      ${this.steady.heldBack ? html`<p class="faint small under" role="status">${count(this.steady.heldBack)} more when you leave this list.</p>` : nothing}
      ${left ? html`<p class="faint small under">${plural(left, "younger one")} ${left === 1 ? "was" : "were"} not looked at.</p>` : nothing}`;
  }

  /**
   * @param {Letter} letter
   * @param {boolean} isGone whether it is shown only because somebody points at the list
   */
  letter(letter, isGone) {
    return html`<li class=${isGone ? "gone" : ""}><input type="checkbox" aria-label=${`Select ${letter.reason} ${letter.id}`} ?disabled=${isGone || letter.replay_obstacle !== null}
        .checked=${this.selected.has(letter.id)} @change=${(/** @type {Event} */ event) => this.select(letter.id, /** @type {HTMLInputElement} */ (event.target).checked)}>
      <details><summary><b title=${letter.reason}>${letter.meaning || letter.reason}</b>
          <span class="soft small">${isGone ? html`<i>no longer listed</i> · ` : nothing}${letter.time ? html`<time-ago at=${letter.time}></time-ago>` : "at an unknown time"}${letter.queue ? html` · ${letter.queue}` : nothing}
            · ${letter.sender ? html`sent by <b>${letter.sender}</b>` : "sender not named"}${letter.only_by_id ? html` <span class="pill attention">not trusted</span>` : nothing}</span>
          <code class="truncate">${firstLine(letter)}</code></summary>
        <dl><dt>Id</dt><dd><code>${letter.id}</code></dd>
          <dt>Reason</dt><dd><code>${letter.reason}</code></dd>
          <dt>Detail</dt><dd>${letter.detail || "none"}</dd>
          <dt>Came to</dt><dd>${letter.exchange || "(no exchange)"}, with the key <code>${letter.routing_key}</code>${letter.index === null ? nothing : html`, as element ${letter.index} of an array`}</dd>
          <dt>Size</dt><dd>${bytes(letter.length)}${letter.body_cut ? ", of which the beginning is shown" : nothing}</dd></dl>
        <pre class="code" tabindex="0" role="group" aria-label=${`Body of ${letter.id}`}>${letter.body}</pre>
        ${letter.replay_obstacle ? html`<p class="soft small">It cannot be replayed: ${letter.replay_obstacle}.</p>`
          : html`<button class="button" ?disabled=${isGone || this.busy} @click=${() => this.replayThese([letter])}>Replay…</button>`}</details></li>`;
  }
}

/** @param {Letter} letter */
function firstLine({ body }) {
  return body.split("\n", 1)[0].slice(0, 200) || "(empty)";
}

/** @param {{reason: string, meaning: string | null, last_day: number}[]} reasons */
function reasonsView(reasons) {
  return html`<details class="dead-letters"><summary>Dead-lettered in the last day</summary><table><thead><tr><th scope="col">Reason</th><th scope="col" class="number">Last day</th></tr></thead>
    <tbody>${reasons.map((each) => html`<tr><th scope="row">${each.meaning} <code>${each.reason}</code></th><td class="number">${count(each.last_day)}</td></tr>`)}</tbody></table></details>`;
}

/**
 * @param {{status: number, message: string, detail: string}} failed
 * @param {() => void} again
 */
function failureView(failed, again) {
  return html`<div class="notice"><p>${api.explain(failed)}</p>${failed.status === 403 ? html`<p>On the command line, as a RabbitMQ user who may:</p>
    <pre class="code" tabindex="0" role="group" aria-label="Commands">taskherd dead list
taskherd dead show ID
taskherd dead replay ID</pre>` : html`<button class="link" @click=${again}>Try again</button>`}</div>`;
}
