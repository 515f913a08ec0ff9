// @ts-check
// The filter field: a text field that offers what can be typed next (https://www.w3.org/WAI/ARIA/apg/patterns/combobox/).
import { html, nothing, render } from "./vendor/lit-html/lit-html.js";
import { quoted } from "./format.js";
import { isComposing } from "./keys.js";
import { complete } from "./query.js";

/** @typedef {import("./query.js").Option} Option */

export class FilterField {
  /**
   * @param {HTMLElement} root
   * @param {(q: string) => void} apply called when the query is to be used
   * @param {() => any[]} rows returns the tasks that are shown
   */
  constructor(root, apply, rows) {
    this.root = root;
    this.apply = apply;
    this.rows = rows;
    this.value = "";
    /** @type {Option[]} */
    this.options = [];
    this.active = -1;
    this.range = { from: 0, to: 0 };
    this.asked = 0;
    this.draw();
  }

  /** @param {string} value */
  set(value) {
    this.value = value;
    this.field.value = value;
    this.close();
  }

  get field() {
    return /** @type {HTMLInputElement} */ (this.root.querySelector("input"));
  }

  close() {
    this.asked += 1;
    this.options = [];
    this.active = -1;
    this.draw();
  }

  async offer() {
    const asked = (this.asked += 1);
    const caret = this.field.selectionStart ?? this.field.value.length;
    const { options, from, to } = await complete(this.field.value, caret, this.rows());
    if (asked !== this.asked || document.activeElement !== this.field) return;
    Object.assign(this, { options, range: { from, to }, active: -1 });
    this.draw();
  }

  /** @param {Option} option */
  take(option) {
    const { value } = this.field;
    const { isBegun } = option;
    const insert = isBegun ? option.insert : quoted(option.insert);
    const rest = value.slice(this.range.to).trimStart();
    const before = value.slice(0, this.range.from) + insert + (isBegun ? "" : " ");
    this.field.value = before + rest;
    this.field.setSelectionRange(before.length, before.length);
    if (isBegun) this.offer();
    else this.submit();
  }

  submit() {
    this.value = this.field.value.trim();
    this.close();
    this.apply(this.value);
  }

  /** @param {KeyboardEvent} event */
  onKey(event) {
    if (isComposing(event)) return;
    const { key } = event;
    const count = this.options.length;
    if ((key === "ArrowDown" || key === "ArrowUp") && count) {
      const step = key === "ArrowDown" ? 1 : -1;
      this.active = this.active < 0 && step < 0 ? count - 1 : (this.active + step + count) % count;
      this.draw();
    } else if (key === "ArrowDown") this.offer();
    else if ((key === "Enter" || (key === "Tab" && !event.shiftKey)) && this.active >= 0) this.take(this.options[this.active]);
    else if (key === "Enter") this.submit();
    else if (key === "Escape" && count) this.close();
    else if (key === "Escape") this.field.blur();
    else return;
    event.preventDefault();
  }

  draw() {
    const open = this.options.length > 0;
    render(html`
      <svg class="glass" viewBox="0 0 16 16" aria-hidden="true"><circle cx="7" cy="7" r="4.5" fill="none" stroke="currentColor" stroke-width="1.5"/><path d="m10.5 10.5 3.5 3.5" stroke="currentColor" stroke-width="1.5" stroke-linecap="round"/></svg>
      <input type="text" role="combobox" aria-label="Filter" aria-autocomplete="list" aria-expanded=${open} aria-controls="filter-options"
        aria-activedescendant=${this.active >= 0 ? `filter-option-${this.active}` : nothing} autocomplete="off" autocapitalize="none" spellcheck="false"
        placeholder="How a name begins, or owner:me state:working created:<2h …"
        @input=${() => this.offer()} @focus=${() => this.offer()} @blur=${() => this.close()} @keydown=${(/** @type {KeyboardEvent} */ event) => this.onKey(event)}>
      <ul id="filter-options" role="listbox" aria-label="Terms and values" ?hidden=${!open}>
        ${this.options.map((option, index) => html`<li role="option" id="filter-option-${index}" aria-selected=${index === this.active}
          @mousedown=${(/** @type {Event} */ event) => (event.preventDefault(), this.take(option))}><code>${option.label}</code><span>${option.hint}</span></li>`)}
      </ul>`, this.root);
    this.root.querySelector("[aria-selected=true]")?.scrollIntoView({ block: "nearest" });
  }
}
