// @ts-check
/** @type {import("../router.js").Page} */
export default function tasks(view) {
  view.setTitle("Tasks");
  view.shown();
  view.root.textContent = "Tasks";
}
