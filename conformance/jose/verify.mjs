// A relying party: node verify.mjs <issuer> <audience>. It finds the keys by discovery, reads lines of
// "<unix seconds> <token>", with the typ to expect if there is one, and answers each with "ok <sub>" or "no <why>", as of that time.
import { createInterface } from 'node:readline';
import { createRemoteJWKSet, jwtVerify } from 'jose';
import { allowInsecureRequests, discovery } from 'openid-client';

const [issuer, audience] = process.argv.slice(2);
const config = await discovery(new URL(issuer), 'client', undefined, undefined, {
  execute: [allowInsecureRequests], // the test's issuer is on loopback
});
const metadata = config.serverMetadata();
// One fetch more when a kid is unknown is what the test allows, so nothing may hold it back.
const keys = createRemoteJWKSet(new URL(metadata.jwks_uri), { cooldownDuration: 0 });

for await (const line of createInterface({ input: process.stdin })) {
  const [at, token, typ] = line.split(' ');
  try {
    const { payload } = await jwtVerify(token, keys, {
      issuer: metadata.issuer,
      audience,
      algorithms: metadata.id_token_signing_alg_values_supported,
      requiredClaims: ['exp'],
      typ,
      currentDate: new Date(at * 1000),
    });
    console.log(`ok ${payload.sub}`);
  } catch (error) {
    console.log(`no ${error.code ?? error}`);
  }
}
