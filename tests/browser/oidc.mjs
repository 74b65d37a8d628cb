// Sign-in at a real OpenID provider (oidc-provider): once, with a stronger authentication where a request asks for it, and what must
// not sign anybody in.
import { createServer } from "node:http";
import { generateKeyPairSync } from "node:crypto";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { join } from "node:path";
import { ask, assert, run } from "./steps.mjs";

// The provider prints notices, and standard output is for the test.
console.info = console.warn = console.error;
const require = createRequire(join(process.env.MODULES, "package.json"));
const { default: Provider } = await import(pathToFileURL(require.resolve("oidc-provider")));
const { DESK: desk, ISSUER: issuer, SECRET: secret } = process.env;

const { privateKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
const provider = new Provider(issuer, {
  clients: [{
    client_id: "desk", client_secret: secret, redirect_uris: [`${desk}/callback`], id_token_signed_response_alg: "ES256",
    response_types: ["code"], grant_types: ["authorization_code"],
  }],
  jwks: { keys: [{ ...privateKey.export({ format: "jwk" }), alg: "ES256", use: "sig", kid: "one" }] },
  cookies: { keys: ["of-this-test"] },
  pkce: { required: () => true },
  acrValues: ["high"],
  claims: { openid: ["sub", "acr", "amr", "employee"] },
  conformIdTokenClaims: false,
  features: { devInteractions: { enabled: false } },
  findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id, employee: `e-${id}` }) }),
  interactions: { url: (_, interaction) => `/sign-in/${interaction.uid}` },
  loadExistingGrant: async (ctx) => {
    const grant = new ctx.oidc.provider.Grant({ clientId: ctx.oidc.client.clientId, accountId: ctx.oidc.session.accountId });
    grant.addOIDCScope("openid");
    await grant.save();
    return grant;
  },
});
const handle = provider.callback();
const server = createServer(async (request, response) => {
  if (!request.url.startsWith("/sign-in/")) return handle(request, response);
  if (request.method === "GET") {
    response.setHeader("content-type", "text/html");
    return response.end(`<!DOCTYPE html><title>Provider</title><form method="post">
      <label>Name <input name="name"></label><label><input type="checkbox" name="strong"> Security key</label><button>Continue</button></form>`);
  }
  let body = "";
  for await (const part of request) body += part;
  const form = new URLSearchParams(body);
  const strong = form.has("strong");
  const login = { accountId: form.get("name"), acr: strong ? "high" : "low", amr: strong ? ["hwk"] : ["pwd"] };
  return provider.interactionFinished(request, response, { login }, { mergeWithLastSubmission: false });
});
await new Promise((resolve) => server.listen(new URL(issuer).port, "127.0.0.1", resolve));

await run(async (browser) => {
  const context = await browser.newContext();
  const page = await context.newPage();
  page.setDefaultTimeout(Number(process.env.PATIENCE_MS));
  const waiting = await ask("request 400");

  // A page that needs a session leads to the provider and back to the page.
  await page.goto(`${desk}/requests/${waiting}`);
  await page.getByLabel("Name").fill("lead-1");
  await page.getByRole("button", { name: "Continue" }).click();
  await page.getByRole("heading", { name: "account.credit for case case-1" }).waitFor();
  // Ports share cookies, so those of the provider are among them.
  const cookies = (await context.cookies(desk)).filter(({ name }) => name.startsWith("countersign"));
  assert.deepEqual(cookies.map(({ name, httpOnly, sameSite }) => [name, httpOnly, sameSite]), [["countersign-desk", true, "Lax"]]);

  // The request asks for a stronger authentication, which the provider gives after another sign-in.
  await page.getByText("lacks the authentication").waitFor();
  assert.equal(await page.getByRole("button", { name: "Approve" }).count(), 0);
  await page.getByRole("link", { name: "Sign in again with stronger authentication" }).click();
  await page.getByLabel("Name").fill("lead-1");
  await page.getByLabel("Security key").check();
  await page.getByRole("button", { name: "Continue" }).click();
  await page.getByRole("button", { name: "Approve" }).click();
  await page.getByText("Approved; may be used once").waitFor();

  // Answers that belong to no sign-in of this browser.
  const refused = async (url) => {
    await page.goto(url);
    await page.getByRole("heading", { name: "You could not be signed in" }).waitFor();
  };
  await refused(`${desk}/callback?code=made-up&state=made-up`);
  const begin = async (from) => {
    const answer = await from.request.get(`${desk}/login`, { maxRedirects: 0 });
    assert.equal(answer.status(), 303);
    return new URL(answer.headers().location);
  };
  const sent = await begin(context);
  for (const [name, value] of [["code_challenge_method", "S256"], ["response_type", "code"], ["client_id", "desk"]]) {
    assert.equal(sent.searchParams.get(name), value);
  }
  const state = sent.searchParams.get("state");
  assert.ok(state.length >= 32 && sent.searchParams.get("nonce").length >= 32);
  await refused(`${desk}/callback?code=made-up&state=${state}`);
  await refused(`${desk}/callback?error=access_denied&state=${state}`);
  // The code of another browser's sign-in, with this one's state: the verifier is another.
  const other = await browser.newContext();
  let code = "";
  let url = await begin(other);
  for (let hop = 0; hop < 8 && !code; hop += 1) {
    const form = url.pathname.startsWith("/sign-in/") ? { form: { name: "lead-2" }, method: "POST" } : {};
    const answer = await other.request.fetch(url.href, { ...form, maxRedirects: 0 });
    url = new URL(answer.headers().location, url);
    if (url.pathname === "/callback") code = url.searchParams.get("code");
  }
  assert.ok(code, "the provider gave no code");
  await refused(`${desk}/callback?code=${code}&state=${(await begin(context)).searchParams.get("state")}`);

  // After signing out, a human must sign in again.
  await page.goto(`${desk}/`);
  await page.getByText("lead-1").first().waitFor();
  await page.getByRole("button", { name: "Sign out" }).click();
  await page.getByText("You are signed out.").waitFor();
  const answer = await context.request.get(`${desk}/`, { maxRedirects: 0 });
  assert.equal(answer.status(), 303);
  assert.ok(answer.headers().location.startsWith("/login?to="));

  // Somebody whom the provider knows and the bundle does not.
  const stranger = await browser.newContext();
  const strange = await stranger.newPage();
  await strange.goto(`${desk}/`);
  await strange.getByLabel("Name").fill("stranger");
  await strange.getByRole("button", { name: "Continue" }).click();
  await strange.getByText("is not in the bundle").waitFor();

  // Made-up answers cost the provider no more requests than the share of one address.
  const flood = async () => {
    const counts = {};
    const state = (await begin(other)).searchParams.get("state");
    for (let attempt = 0; attempt < 200; attempt += 1) {
      const answer = await other.request.get(`${desk}/callback?code=made-up&state=${state}`, { maxRedirects: 0 });
      counts[answer.status()] = (counts[answer.status()] ?? 0) + 1;
    }
    return counts;
  };
  const counts = await flood();
  assert.ok(counts[429] > 0 && counts[502] > 0 && counts[429] + counts[502] === 200, JSON.stringify(counts));
});
server.close();
server.closeAllConnections();
