package scenarios_test

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/plan"
)

// party is a relying party that has nothing but the JWKS, from one server, and keeps it for as
// long as it may, to the nanosecond.
type party struct {
	t       testing.TB
	server  *keyringtest.Server
	keys    map[string]ed25519.PublicKey
	checked map[string]bool // kids of which a signature was right: one a key is enough
	expires time.Time
	fetched int
}

func (p *party) fetch() {
	p.t.Helper()
	r := keyringtest.Request(p.server.Keyring.WellKnown(), "GET", keyringtest.JWKSPath)
	for r.StatusCode == http.StatusServiceUnavailable { // it has just started: what one has is no good, and it says so
		time.Sleep(time.Second) // virtual
		r = keyringtest.Request(p.server.Keyring.WellKnown(), "GET", keyringtest.JWKSPath)
	}
	var age int
	if _, err := fmt.Sscanf(r.Header.Get("Cache-Control"), "public, max-age=%d", &age); err != nil {
		p.t.Fatal(err)
	}
	var doc struct{ Keys []struct{ Kid, X string } }
	if err := json.Unmarshal([]byte(keyringtest.Body(p.t, r)), &doc); err != nil {
		p.t.Fatal(err)
	}
	p.keys = map[string]ed25519.PublicKey{}
	for _, k := range doc.Keys {
		x, err := base64.RawURLEncoding.DecodeString(k.X)
		if err != nil || len(x) != ed25519.PublicKeySize {
			p.t.Fatalf("%q: %v", k.X, err)
		}
		p.keys[k.Kid] = x
	}
	p.expires = time.Now().Add(time.Duration(age) * time.Second)
	p.fetched++
}

var errUnknownKid = errors.New("unknown kid")

// verify checks a signature with the keys it has, or may no longer go on with.
func (p *party) verify(token, kid string) error {
	if !time.Now().Before(p.expires) {
		p.fetch()
	}
	public, ok := p.keys[kid]
	if !ok {
		return errUnknownKid
	}
	if p.checked[kid] {
		return nil
	}
	dot := strings.LastIndexByte(token, '.')
	signature, err := base64.RawURLEncoding.DecodeString(token[dot+1:])
	if err != nil || !ed25519.Verify(public, []byte(token[:dot]), signature) {
		return fmt.Errorf("signature: %w", err)
	}
	p.checked[kid] = true
	return nil
}

// parties are many, of all servers, that fetch at other moments each.
func parties(t testing.TB, c *keyringtest.Cluster, n int) []*party {
	all := make([]*party, n)
	for i := range all {
		all[i] = &party{t: t, server: c.Servers[i%len(c.Servers)], checked: map[string]bool{}}
	}
	return all
}

// TestRelyingPartyKnowsEveryScheduledKey, also if the lead is short, and if the cluster was off
// and is so late that the next key is due before it is made.
func TestRelyingPartyKnowsEveryScheduledKey(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ every, lead, off time.Duration }{
		{time.Hour, 10 * time.Minute, 0},
		{20 * time.Minute, 5 * time.Minute, 0},
		{10 * time.Minute, time.Minute, 0},
		{time.Minute, 10 * time.Second, 0},
		{30 * time.Minute, 5 * time.Minute, 2 * time.Hour},
		{30 * time.Minute, 20 * time.Minute, 2 * time.Hour},
	} {
		t.Run(fmt.Sprintf("every %v, lead %v, off for %v", tt.every, tt.lead, tt.off), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := keyringtest.NewSigningAt(t, 4*time.Second, 3, func(cfg *keyring.Config) {
					cfg.Rotation = keyring.RotationPolicy{Every: tt.every, Lead: tt.lead}
				})
				keyringtest.Ready(t, c)
				keyringtest.AwaitKeys(t, c)
				if tt.off > 0 {
					c.Close()
					time.Sleep(tt.off) // virtual
					for _, s := range c.Servers {
						c.Restart(s)
					}
				}
				c.OnEvent(func(e keyringtest.Event) keyringtest.Reply { // a key takes its time to be made
					if e.Kind == "disk" && strings.HasPrefix(e.What, "sync") || e.Kind == "log" {
						time.Sleep(min(tt.lead/200, time.Second)) // virtual
					}
					return keyringtest.Reply{}
				})
				all := parties(t, c, 60)
				step := min(time.Second, tt.lead/300)
				for i, signed := 0, map[string]bool{}; len(signed) < 4; i++ {
					if time.Sleep(step); time.Duration(i)*step > 5*tt.every { // virtual
						t.Fatalf("after %v only %d keys have signed", time.Duration(i)*step, len(signed))
					}
					token, err := c.Leader().Keyring.Sign(keyringtest.ClaimsForMe())
					if errors.Is(err, keyring.ErrNotReady) {
						continue
					}
					if err != nil {
						t.Fatal(err)
					}
					kid := keyringtest.KeyIDOf(t, token).String()
					signed[kid] = true
					for _, p := range all[:min(len(all), i+1)] { // they begin one after another
						if err := p.verify(token, kid); err != nil {
							t.Fatalf("key %d, with a JWKS of %s that is good for another %v: %v", len(signed), p.server.ID, time.Until(p.expires), err)
						}
					}
				}
			})
		})
	}
}

// TestRelyingPartyFetchesOnceMoreAfterAnImmediateRotation, and no more, from whichever server.
func TestRelyingPartyFetchesOnceMoreAfterAnImmediateRotation(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewSigning(t, 3, func(cfg *keyring.Config) { cfg.Rotation.Every = -1 })
		leader := keyringtest.Ready(t, c)
		keyringtest.AwaitKeys(t, c)
		all := parties(t, c, 30)
		for i := range 50 {
			o := keyring.RotateOptions{}
			if i%2 == 1 {
				o.Revoke = []keyring.KeyID{leader.Keyring.Keys()[0].ID}
			}
			if _, err := leader.Keyring.Rotate(t.Context(), o); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			token := keyringtest.Sign(t, leader)
			kid := keyringtest.KeyIDOf(t, token).String()
			for _, p := range all {
				before := p.fetched
				err := p.verify(token, kid)
				if errors.Is(err, errUnknownKid) {
					p.fetch()
					err = p.verify(token, kid)
				}
				if err != nil || p.fetched > before+1 {
					t.Fatalf("after %d fetches: %v", p.fetched-before, err)
				}
			}
			time.Sleep(time.Duration(i) * time.Second) // virtual
		}
	})
}

// TestNoTokenOutlivesItsKey is a quarter of rotations of every kind, of removals as soon as they
// do no harm, with leaders that change, restart, and are replaced with their disks. Every token
// verifies on every server until it expires, and on none after it.
func TestNoTokenOutlivesItsKey(t *testing.T) {
	t.Parallel()
	type signed struct {
		token   string
		expires time.Time
	}
	synctest.Test(t, func(t *testing.T) {
		const maxTTL = 36 * time.Hour
		rnd := rand.New(rand.NewPCG(4, 7))
		c := keyringtest.NewSigningAt(t, 4*time.Hour, 3, func(cfg *keyring.Config) {
			cfg.Rotation = keyring.RotationPolicy{Every: 9 * 24 * time.Hour}
			cfg.Tokens.MaxTTL = maxTTL
		})
		keyringtest.Ready(t, c)
		var live []signed
		expired, removed, kinds := 0, 0, map[keyring.State]int{}
		for end := time.Now().Add(91 * 24 * time.Hour); time.Now().Before(end); time.Sleep(5 * time.Hour) { // virtual
			disturb(t, c, rnd)
			leader := keyringtest.Ready(t, c)
			removed += advance(t, c, maxTTL)
			for _, ttl := range []time.Duration{maxTTL, upTo(rnd, maxTTL), upTo(rnd, time.Hour)} {
				expires := time.Now().Add(ttl).Truncate(time.Second)
				if !expires.After(time.Now()) {
					continue
				}
				live = append(live, signed{keyringtest.Sign(t, leader, map[string]any{"exp": expires.Unix()}), expires})
			}
			keyringtest.AwaitRing(t, c)
			var still []signed
			for _, s := range live {
				switch now := time.Now(); {
				case now.Before(s.expires):
					still = append(still, s)
					kinds[keyring.State(keyringtest.Ring(leader.FSM).Key(meta.KeyID(keyringtest.KeyIDOf(t, s.token))).State)]++
					keyringtest.CheckVerifies(t, c, s.token, true, s.expires.String())
				case now.After(s.expires.Add(time.Minute)):
					expired++
					keyringtest.CheckVerifies(t, c, s.token, false, "expired")
				}
			}
			live = still
		}
		t.Logf("%d keys, %d removed; %d tokens expired; verified while %v", len(c.Leader().Keyring.Keys()), removed, expired, kinds)
		if expired < 500 || removed < 20 || kinds[keyring.StateActive] == 0 || kinds[keyring.StateDeprecated] == 0 {
			t.Error("that was no quarter")
		}
	})
}

func upTo(rnd *rand.Rand, most time.Duration) time.Duration {
	return time.Duration(rnd.Int64N(int64(most)))
}

// disturb does one thing to the cluster, or nothing.
func disturb(t testing.TB, c *keyringtest.Cluster, rnd *rand.Rand) {
	t.Helper()
	leader := keyringtest.Ready(t, c)
	switch rnd.IntN(8) {
	case 0:
		if err := leader.Raft.LeadershipTransfer().Error(); err != nil {
			t.Log(err)
		}
	case 1:
		c.Restart(leader)
	case 2:
		keyringtest.AwaitKeys(t, c)
		keyringtest.Replace(c, leader)
	case 3, 4:
		o := keyring.RotateOptions{}
		if rnd.IntN(2) == 0 {
			o.Publish = time.Now().Add(upTo(rnd, 10*time.Hour))
		}
		if _, err := leader.Keyring.Rotate(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
}

// advance takes retired keys one state further, and removes those whose tokens are over. It
// returns how many.
func advance(t testing.TB, c *keyringtest.Cluster, maxTTL time.Duration) (removed int) {
	t.Helper()
	for _, k := range keyringtest.Ring(c.Leader().FSM).Keys {
		switch k.State {
		case meta.StateInactive:
			keyringtest.MustPropose(t, c, meta.Command{Rekey: &meta.Rekey{ID: k.ID}})
		case meta.StateRekeying:
			keyringtest.Deprecate(t, c, keyring.KeyID(k.ID))
		case meta.StateDeprecated:
			if plan.VerifiesUntil(k, plan.Tokens{MaxTTL: maxTTL, Leeway: time.Minute}).After(time.Now()) {
				continue
			}
			keyringtest.MustPropose(t, c, meta.Command{Remove: &meta.Remove{ID: k.ID, From: k.State, Time: time.Now().UTC()}})
			removed++
		}
	}
	return removed
}
