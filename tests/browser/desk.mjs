// The approval desk in a real browser: a credit from its request to its approval, by two humans; live, with the keyboard only, without
// JavaScript, on a narrow screen and in the dark.
import { ask, assert, check, run, signIn } from "./steps.mjs";

const desktop = { viewport: { width: 1280, height: 900 } };
const phone = { viewport: { width: 360, height: 740 }, hasTouch: true };

await run(async (browser) => {
  // Two humans watch. The request appears without a reload.
  const supervisor = await signIn(browser, "rep-1", desktop);
  const lead = await signIn(browser, "lead-1", desktop);
  await lead.getByText("Nothing that you may see waits for approval.").waitFor();
  await check(lead, "inbox-empty");
  await ask("request 400");
  const row = lead.getByRole("link", { name: "account.credit" });
  await row.waitFor();
  await check(lead, "inbox");

  // The supervisor sees it and can't approve it.
  await supervisor.getByText("not yours to review").waitFor();
  await supervisor.getByRole("link", { name: "account.credit" }).click();
  await supervisor.getByText("another person must review it").waitFor();
  assert.equal(await supervisor.getByRole("button", { name: "Approve" }).count(), 0);

  // The other human approves; the supervisor's page follows.
  await row.click();
  await lead.getByRole("heading", { name: "account.credit for case case-1" }).waitFor();
  await lead.getByText("Written by the agent, not verified").waitFor();
  await check(lead, "request");
  await lead.getByLabel("Note (optional)").fill("as agreed with the customer");
  await lead.getByRole("button", { name: "Approve" }).click();
  await lead.getByText("Approved; may be used once").waitFor();
  await supervisor.getByText("Approved; may be used once").waitFor();
  await check(lead, "approved");
  assert.equal(await ask("use"), "allow");
  await lead.getByText("Approved and used.").waitFor();

  // The keyboard is enough: from the address to the denial.
  await ask("request 500");
  await lead.goto(new URL("/", lead.url()).href);
  await lead.getByRole("link", { name: "account.credit" }).waitFor();
  const press = async (key, times = 1) => { for (let time = 0; time < times; time += 1) await lead.keyboard.press(key); };
  const focused = () => lead.evaluate(() => document.activeElement?.textContent?.trim() || document.activeElement?.id || "");
  const tabTo = async (wanted) => {
    for (let time = 0; time < 60; time += 1) {
      await press("Tab");
      if ((await focused()).startsWith(wanted)) return;
    }
    assert.fail(`the keyboard does not reach ${wanted}`);
  };
  await press("Tab");
  assert.equal(await focused(), "Skip to the content");
  await tabTo("account.credit");
  await press("Enter");
  await lead.getByRole("button", { name: "Deny" }).waitFor();
  await lead.locator("#reason").focus();
  await lead.keyboard.type("The amount");
  await press("Tab");
  await lead.keyboard.type("half of it");
  await tabTo("Deny");
  await press("Enter");
  await lead.getByText("Denied.", { exact: false }).first().waitFor();
  assert.equal(await ask("state"), "denied wrong_amount: half of it");

  // The other pages.
  for (const [path, heading, name] of [
    ["/decisions", "Decisions", "decisions"],
    ["/stops", "Kill switches", "stops"],
    ["/bundle", "Bundle", "bundle"],
    ["/cases/case-1", "Case case-1", "case"],
  ]) {
    await lead.goto(new URL(path, lead.url()).href);
    await lead.getByRole("heading", { name: heading, exact: true }).waitFor();
    await check(lead, name);
  }
  await lead.goto(new URL("/decisions?decision=allow", lead.url()).href);
  await lead.locator("tbody tr th a").first().click();
  await lead.getByRole("heading", { name: "Why" }).waitFor();
  await check(lead, "decision");

  // Without JavaScript, on a phone, in the dark: approve, and stop an agent.
  const narrow = await signIn(browser, "lead-2", { ...phone, javaScriptEnabled: false, colorScheme: "dark" });
  await ask("request 600");
  const link = narrow.getByRole("link", { name: "account.credit" });
  for (let time = 0; time < 100 && (await link.count()) === 0; time += 1) await narrow.reload();
  await link.click();
  await narrow.getByRole("button", { name: "Approve" }).click();
  await narrow.getByText("Approved; may be used once").waitFor();
  await narrow.goto(new URL("/stops", narrow.url()).href);
  await narrow.getByLabel("Id (of everything", { exact: false }).fill("refund-bot");
  await narrow.getByLabel("Why").fill("it was turned");
  await narrow.getByRole("button", { name: "Stop" }).click();
  await narrow.getByText("kill switch since").waitFor();

  // The same pages on a phone with JavaScript, in the dark.
  const dark = await signIn(browser, "lead-2", { ...phone, colorScheme: "dark" });
  for (const [path, name] of [["/", "phone-inbox"], ["/decisions", "phone-decisions"], ["/stops", "phone-stops"], ["/bundle", "phone-bundle"]]) {
    await dark.goto(new URL(path, dark.url()).href);
    await check(dark, name);
  }

  // Nobody else can show the desk in a frame, and signing out ends it.
  await dark.getByRole("button", { name: "Sign out" }).click();
  await dark.getByText("You are signed out.").waitFor();
  await dark.goto(new URL("/", dark.url()).href);
  await dark.getByText("You are not signed in").waitFor();
  await check(dark, "signed-out");
});
