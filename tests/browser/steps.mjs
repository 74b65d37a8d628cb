// Steps that the browser tests share: the browser, sign-in by a link, checks of each page, and a way to ask the test for something.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import assert from "node:assert/strict";

const require = createRequire(join(process.env.MODULES, "package.json"));
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const shots = process.env.SCREENSHOTS;
mkdirSync(shots, { recursive: true });

/** Starts the browser. Its sandbox needs rights that a container does not give. */
export const launch = () =>
  chromium.launch({ executablePath: process.env.CHROMIUM, args: ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"] });

const lines = createInterface({ input: process.stdin });
const answers = [];
const waiting = [];
lines.on("line", (line) => (waiting.length ? waiting.shift()(line) : answers.push(line)));

/** Asks the test for something, and returns its answer. */
export const ask = (what) => {
  console.log(what);
  return answers.length ? Promise.resolve(answers.shift()) : new Promise((resolve) => waiting.push(resolve));
};

/** Opens a context of its own and signs a human in. */
export async function signIn(browser, human, options = {}) {
  const context = await browser.newContext(options);
  const page = await context.newPage();
  page.setDefaultTimeout(Number(process.env.PATIENCE_MS));
  await page.goto(await ask("link"));
  await page.getByLabel("Sign in as").selectOption(human);
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.getByRole("heading", { name: "Requests for approval" }).waitFor();
  return page;
}

/** Checks a page: nothing is wider than the screen, axe-core finds no serious fault, and it is written to a picture. */
export async function check(page, name) {
  const width = await page.evaluate(() => document.documentElement.scrollWidth);
  assert.ok(width <= page.viewportSize().width, `${name} is ${width} pixels wide`);
  if (!(await page.evaluate(() => "axe" in window).catch(() => false))) {
    // The page's own policy forbids scripts of others; the debugger's protocol does not ask it.
    await page.evaluate(axe);
  }
  const { violations } = await page.evaluate(() => window.axe.run());
  const serious = violations.filter((found) => ["serious", "critical"].includes(found.impact));
  assert.deepEqual(serious.map((found) => [found.id, found.nodes.map((node) => node.html)]), [], name);
  await page.screenshot({ path: join(shots, `${name}.png`), fullPage: true });
}

export { assert };

/** Runs the steps, and says what failed. */
export async function run(steps) {
  const browser = await launch();
  try {
    await steps(browser);
    console.log("done");
  } catch (error) {
    console.error(error);
    process.exitCode = 1;
    const pages = browser.contexts().flatMap((context) => context.pages());
    for (const [index, page] of pages.entries()) {
      console.error(page.url(), await page.locator("main").innerText().catch(() => "no content"));
      await page.screenshot({ path: join(shots, `failed-${index}.png`), fullPage: true }).catch(() => {});
    }
  } finally {
    await browser.close();
    lines.close();
  }
}
