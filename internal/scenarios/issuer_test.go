package scenarios_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"github.com/go-jose/go-jose/v3"
	"github.com/hashicorp/raft"
)

const before, after = "https://before.example/a", "https://after.example"

// believer is a relying party that believes some issuers, finds their keys by discovery at the URL of each, and keeps them
// for as long as it may.
type believer struct {
	t        testing.TB
	c        *keyringtest.Cluster
	issuers  []string
	keys     map[string]jose.JSONWebKeySet // by the issuer
	until    map[string]time.Time
	requests int
}

func newBeliever(t testing.TB, c *keyringtest.Cluster, issuers ...string) *believer {
	return &believer{t: t, c: c, issuers: issuers, keys: map[string]jose.JSONWebKeySet{}, until: map[string]time.Time{}}
}

// get asks one server after another, as behind a load balancer, which serves each issuer's handler under its name.
func (b *believer) get(issuer, url string, into any) (age int) {
	b.t.Helper()
	live := b.c.Live()
	b.requests++
	s := live[b.requests%len(live)]
	h := s.Keyring.WellKnownFor(issuer)
	if issuer == before {
		h = http.StripPrefix("/a", h)
	}
	r := keyringtest.Request(h, "GET", url)
	body := keyringtest.Body(b.t, r)
	if err := json.Unmarshal([]byte(body), into); r.StatusCode != http.StatusOK || err != nil {
		b.t.Fatalf("%s of %s: %d %s, %v", url, s.ID, r.StatusCode, body, err)
	}
	if _, err := fmt.Sscanf(r.Header.Get("Cache-Control"), "public, max-age=%d", &age); err != nil {
		b.t.Fatal(err)
	}
	return age
}

// discover finds an issuer's keys. The document has to have the very issuer that it was found by.
func (b *believer) discover(issuer string) {
	b.t.Helper()
	var found struct {
		Issuer  string
		JWKSURI string `json:"jwks_uri"`
	}
	b.get(issuer, issuer+"/.well-known/openid-configuration", &found)
	if found.Issuer != issuer || found.JWKSURI != issuer+keyringtest.JWKSPath {
		b.t.Fatalf("discovery of %s: %+v", issuer, found)
	}
	var set jose.JSONWebKeySet
	age := b.get(issuer, found.JWKSURI, &set)
	b.keys[issuer], b.until[issuer] = set, time.Now().Add(time.Duration(age)*time.Second)
}

func (b *believer) verify(token string) error {
	b.t.Helper()
	parsed, err := jose.ParseSigned(token)
	if err != nil {
		return err
	}
	var claims struct{ Iss string }
	if err := json.Unmarshal(parsed.UnsafePayloadWithoutVerification(), &claims); err != nil {
		return err
	}
	if !slices.Contains(b.issuers, claims.Iss) {
		return fmt.Errorf("issuer %s", claims.Iss)
	}
	if !time.Now().Before(b.until[claims.Iss]) {
		b.discover(claims.Iss)
	}
	set := b.keys[claims.Iss]
	keys := set.Key(parsed.Signatures[0].Header.KeyID)
	if len(keys) != 1 {
		return errUnknownKid
	}
	_, err = parsed.Verify(keys[0].Key)
	return err
}

// issuerChange takes a cluster from one issuer to another, server by server, with tokens of all leaders alive.
type issuerChange struct {
	*testing.T
	c         *keyringtest.Cluster
	policies  map[raft.ServerID]keyring.TokenPolicy
	tokens    map[string]time.Time // until when each lives
	forOne    map[string]time.Time // those for a relying party that does not know the new issuer yet
	early     *believer            // is told of an issuer before tokens have it; nil leaves out relying parties
	late      *believer            // is told of it when all servers sign with it
	refused   []error
	meanwhile []keyring.Problem // of the policies, in the middle of the last step
}

const issuerTTL = time.Hour

func newIssuerChange(t *testing.T) *issuerChange {
	i := &issuerChange{T: t, policies: map[raft.ServerID]keyring.TokenPolicy{}, tokens: map[string]time.Time{}, forOne: map[string]time.Time{}}
	for _, id := range []raft.ServerID{"s1", "s2", "s3"} {
		i.policies[id] = keyring.TokenPolicy{Issuer: before}
	}
	i.c = keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Configure: func(s *keyringtest.Server, cfg *keyring.Config) {
		cfg.Tokens = i.policies[s.ID]
		cfg.Tokens.Algorithm, cfg.Tokens.MaxTTL = "EdDSA", issuerTTL
	}})
	keyringtest.Ready(t, i.c)
	keyringtest.AwaitKeys(t, i.c)
	return i
}

// roll gives the servers another policy, one after the other.
func (i *issuerChange) roll(p keyring.TokenPolicy) {
	for n, s := range i.c.Servers {
		i.c.Stop(s)
		i.check()
		i.policies[s.ID] = p
		i.c.Start(s)
		keyringtest.Ready(i.T, i.c)
		keyringtest.AwaitKeys(i.T, i.c)
		i.check()
		i.signAndCheck()
		if n == 0 {
			i.meanwhile = i.policyProblems()
		}
	}
}

// signAndCheck has each server lead and sign. Every token is for all servers and for a relying party.
func (i *issuerChange) signAndCheck() {
	for _, s := range i.c.Servers {
		keyringtest.MakeLeader(i.T, i.c, s)
		leader, ends := keyringtest.Ready(i.T, i.c), time.Now().Truncate(time.Second).Add(issuerTTL)
		i.tokens[keyringtest.Sign(i.T, leader)] = ends
		if i.late != nil {
			i.forOne[keyringtest.Sign(i.T, leader, map[string]any{"iss": i.late.issuers[0]})] = ends
		}
		i.check()
	}
}

// check has everybody verify every token that has not ended.
func (i *issuerChange) check() {
	refuse := func(who, token string, err error) {
		if err != nil {
			i.refused = append(i.refused, fmt.Errorf("%s: %s: %w", who, keyringtest.DecodedPart(i.T, token, 1), err))
		}
	}
	for n, tokens := range []map[string]time.Time{i.tokens, i.forOne} {
		by := []*believer{i.early, i.late}[n]
		for token, ends := range tokens {
			if !time.Now().Before(ends) {
				delete(tokens, token)
				continue
			}
			for _, s := range i.c.Live() {
				refuse(string(s.ID), token, s.Keyring.Verify(token, keyringtest.ForMe))
			}
			if by != nil {
				refuse("a relying party", token, by.verify(token))
			}
		}
	}
}

// policyProblems are those of all servers, after the time that they need to hear of each other's policies.
func (i *issuerChange) policyProblems() (all []keyring.Problem) {
	time.Sleep(2 * time.Minute) // virtual
	for _, s := range i.c.Live() {
		all = append(all, keyringtest.Problems(i.T, s, keyring.ProblemPolicy)...)
	}
	return all
}

// TestIssuerChangesWithoutARefusedToken: by the order of docs/tokens.md, whichever servers lead on the way, with relying parties
// that cache. Each step is a rolling restart.
func TestIssuerChangesWithoutARefusedToken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		i := newIssuerChange(t)
		i.early, i.late = newBeliever(t, i.c, before), newBeliever(t, i.c, before)
		i.signAndCheck()
		for _, step := range []struct {
			policy    keyring.TokenPolicy
			meanwhile keyring.Severity // of what Status says of servers that differ
			then      func()
		}{
			{keyring.TokenPolicy{Issuer: before, AcceptIssuers: []string{after}}, keyring.SeverityWarning, func() { i.early.issuers = append(i.early.issuers, after) }},
			{keyring.TokenPolicy{Issuer: after, AcceptIssuers: []string{before}}, keyring.SeverityNotice, func() {
				i.late.issuers = []string{after, before}
				i.signAndCheck()
				time.Sleep(issuerTTL + time.Minute) // virtual: MaxTTL and the leeway
			}},
			{keyring.TokenPolicy{Issuer: after}, keyring.SeverityWarning, func() { i.early.issuers, i.late.issuers = []string{after}, []string{after} }},
		} {
			i.roll(step.policy)
			other := func(p keyring.Problem) bool { return p.Severity != step.meanwhile }
			if len(i.meanwhile) == 0 || slices.ContainsFunc(i.meanwhile, other) {
				t.Errorf("%+v: in the middle: %v", step.policy, i.meanwhile)
			}
			step.then()
			i.signAndCheck()
			if ps := i.policyProblems(); len(ps) > 0 {
				t.Errorf("after a step: %v", ps)
			}
		}
		if err := errors.Join(i.refused...); err != nil {
			t.Error(err)
		}
		if len(i.tokens) < 6 || i.early.requests < 6 {
			t.Errorf("%d tokens, %d requests", len(i.tokens), i.early.requests)
		}
	})
}

// TestIssuerChangesInAnotherOrderRefuseTokens: without a step, or with the last one too early.
func TestIssuerChangesInAnotherOrderRefuseTokens(t *testing.T) {
	t.Parallel()
	both, back := keyring.TokenPolicy{Issuer: before, AcceptIssuers: []string{after}}, keyring.TokenPolicy{Issuer: after, AcceptIssuers: []string{before}}
	for name, steps := range map[string][]keyring.TokenPolicy{
		"all at once":                 {{Issuer: after}},
		"the new issuer is not known": {back, {Issuer: after}},
		"the old issuer is forgotten": {both, {Issuer: after}},
		"no time for tokens to end":   {both, back, {Issuer: after}},
	} {
		synctest.Test(t, func(t *testing.T) {
			i := newIssuerChange(t)
			i.signAndCheck()
			for _, p := range steps {
				i.roll(p)
			}
			if len(i.refused) == 0 {
				t.Errorf("%s: no token was refused", name)
			}
		})
	}
}
