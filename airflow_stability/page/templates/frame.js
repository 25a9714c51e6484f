// Airflow shows this page in a frame whose sandbox lets no link out of it, and has a theme of its own: neither
// can be had without a script. By itself the page needs none.
(() => {
  let outer;
  try { outer = window.parent !== window && window.parent.document; } catch { return; }
  if (!outer) return;
  const airflow = outer.documentElement;
  const followTheme = () => {
    const theme = ["dark", "light"].find((name) => airflow.classList.contains(name));
    document.documentElement.className = theme ?? "";
  };
  new MutationObserver(followTheme).observe(airflow, { attributeFilter: ["class"] });
  followTheme();
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[target]");
    if (!link) return;
    event.preventDefault();
    const theirs = outer.createElement("a");
    theirs.href = link.href;
    theirs.rel = "noopener noreferrer";
    theirs.target = link.target === "_blank" || event.ctrlKey || event.metaKey ? "_blank" : "_self";
    theirs.click();
  });
})();
