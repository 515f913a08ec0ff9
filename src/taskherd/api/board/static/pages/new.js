// @ts-check
/** @type {import("../router.js").Page} */
export default function newTask(view) {
  view.setTitle("New task");
  view.shown();
  view.root.textContent = "New task";
}
