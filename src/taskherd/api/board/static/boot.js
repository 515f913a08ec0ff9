// Applies the chosen colour scheme before the first paint; loaded as a blocking script, so it stays this small.
(() => {
  const theme = localStorage.getItem("taskherd-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
})();
