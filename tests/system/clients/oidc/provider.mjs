// An OpenID provider for the tests: oidc-provider, a certified one, with accounts from a file and pages of its own for logging in.
//
//   node provider.mjs PORT ACCOUNTS.json CLIENT_ID
//
// ACCOUNTS.json has by each account's name its claims, and how it logs in:
//   { "anna": { "claims": { "groups": ["storage"] }, "amr": ["pwd", "otp"], "acr": "high" } }

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [port, accounts, client] = process.argv.slice(2);
// Where `tests/clients.sh` has put it.
const require = createRequire(pathToFileURL(`${process.env.NODE_MODULES_DIR}/package.json`));
const { default: Provider } = await import(pathToFileURL(require.resolve("oidc-provider")));

const account = (name) => JSON.parse(readFileSync(accounts, "utf8"))[name];

const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [
    {
      client_id: client,
      application_type: "native",
      redirect_uris: ["http://127.0.0.1/callback"],
      token_endpoint_auth_method: "none",
      grant_types: ["authorization_code"],
      response_types: ["code"],
    },
  ],
  // With it nothing but `sub` would stand in an ID token.
  conformIdTokenClaims: false,
  claims: { openid: ["sub", "groups", "amr", "acr"] },
  acrValues: ["high"],
  pkce: { required: () => true },
  features: { devInteractions: { enabled: false } },
  interactions: { url: (_, interaction) => `/interaction/${interaction.uid}` },
  async findAccount(_, name) {
    return account(name) && { accountId: name, claims: () => ({ sub: name, ...account(name).claims }) };
  },
});

const form = (action, inputs) => `<form method="post" action="${action}">${inputs}<input type="submit"></form>`;

async function fields(request) {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  return new URLSearchParams(Buffer.concat(chunks).toString());
}

provider.use(async (ctx, next) => {
  if (!ctx.path.startsWith("/interaction/")) return next();
  const details = await provider.interactionDetails(ctx.req, ctx.res);
  if (ctx.method === "GET") {
    ctx.type = "html";
    const inputs = '<input name="login"><input name="password" type="password">';
    ctx.body = form(ctx.path, details.prompt.name === "login" ? inputs : "");
    return;
  }
  ctx.respond = false;
  if (details.prompt.name === "login") {
    const name = (await fields(ctx.req)).get("login");
    const { amr, acr } = account(name);
    return provider.interactionFinished(ctx.req, ctx.res, { login: { accountId: name, amr, acr } });
  }
  const { params, session } = details;
  const grant = new provider.Grant({ accountId: session.accountId, clientId: params.client_id });
  grant.addOIDCScope("openid");
  const consent = { grantId: await grant.save() };
  return provider.interactionFinished(ctx.req, ctx.res, { consent }, { mergeWithLastSubmission: true });
});

provider.listen(Number(port), "127.0.0.1", () => console.log("ready"));
