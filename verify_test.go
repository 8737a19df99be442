package keyring_test

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
)

// TestTokensThroughTheLifeOfAKey walks a key through its states. Its tokens verify, and it is in
// the JWKS, from when it is prepublished until MaxTTL and the leeway after its retirement, on
// every server, whatever becomes of its data.
func TestTokensThroughTheLifeOfAKey(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := signingAt(t, time.Hour, 3, func(cfg *keyring.Config) { cfg.Rotation.Every = -1 })
		leader := ready(t, c)
		key, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{Publish: time.Now().Add(time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		whole(t, c)
		endless := insider(t, leader, key.ID).token(1e5 * time.Hour) // longer than Sign would allow
		state := func(want keyring.State, verify bool) {
			t.Helper()
			level(t, c)
			for _, k := range leader.Keyring.Keys() {
				if k.ID == key.ID && k.State != want {
					t.Fatalf("the key is %s, want %s", k.State, want)
				}
			}
			verifies(t, c, endless, verify, string(want))
			published(t, c, key.ID, verify, string(want))
		}
		state(keyring.StatePrepublished, true)
		time.Sleep(time.Hour + time.Second) // virtual
		state(keyring.StateActive, true)
		token := sign(t, leader)
		if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		state(keyring.StateInactive, true)
		propose(t, c, meta.Command{Rekey: &meta.Rekey{ID: key.ID}})
		state(keyring.StateRekeying, true)
		if st, err := leader.Keyring.Status(t.Context()); err != nil || !strings.Contains(fmt.Sprint(st.Problems), "Config.Data is nil") {
			t.Errorf("a leader that can't move the data: %v, %v", st.Problems, err)
		}
		deprecate(t, c, key.ID)
		state(keyring.StateDeprecated, true)

		end := keyring.Ring(leader.FSM).Key(key.ID).Retired.Add(24*time.Hour + time.Minute)
		time.Sleep(time.Until(end) - 1) // virtual
		if err := leader.Keyring.Verify(token, me); errors.Is(err, keyring.ErrUnknownKey) {
			t.Errorf("the key is gone before its last token: %v", err)
		}
		state(keyring.StateDeprecated, true)
		time.Sleep(time.Nanosecond) // virtual
		state(keyring.StateDeprecated, false)
		verifies(t, c, token, false, "when the time is over")
		propose(t, c, meta.Command{Remove: &meta.Remove{ID: key.ID, From: meta.StateDeprecated, Time: time.Now().UTC()}})
		state("removed", false)
	})
}

// TestTokensOfARemovedKeyAreRefused at once, within the life of the token too.
func TestTokensOfARemovedKeyAreRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := signing(t, 3, nil)
		leader := ready(t, c)
		token := sign(t, leader)
		if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		whole(t, c)
		verifies(t, c, token, true, "before")
		propose(t, c, meta.Command{Remove: &meta.Remove{ID: kidOf(t, token), From: meta.StateInactive, Force: true, Time: time.Now().UTC()}})
		verifies(t, c, token, false, "removed")
		published(t, c, kidOf(t, token), false, "removed")
		for _, s := range c.Live() {
			if err := s.Keyring.Verify(token, me); !errors.Is(err, keyring.ErrUnknownKey) {
				t.Errorf("%s: %v", s.ID, err)
			}
		}
	})
}

// TestRevokedKeyVanishesAtTheActivation: on each server with the very entry that makes the new
// key active, not before, and while its data is still there to be read.
func TestRevokedKeyVanishesAtTheActivation(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := signing(t, 3, func(cfg *keyring.Config) { cfg.Rotation.Every = -1 })
		leader := ready(t, c)
		v := vault{t: t}
		v.seal(leader)
		older := sign(t, leader)
		if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		token, kept := sign(t, leader), leader.Keyring.Keys()[0].ID
		v.seal(leader)
		key, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{
			Publish: time.Now().Add(time.Hour), Revoke: []keyring.KeyID{kidOf(t, token), kidOf(t, older)},
		})
		if err != nil {
			t.Fatal(err)
		}
		whole(t, c)
		verifies(t, c, token, true, "before the activation")
		propose(t, c, meta.Command{Rekey: &meta.Rekey{ID: kidOf(t, older)}})
		verifies(t, c, older, true, "before the activation, rekeying")

		c.Stop(leader) // what was begun, the next leader ends
		for activated := false; !activated; time.Sleep(time.Second) {
			for _, s := range c.Live() {
				ring := keyring.Ring(s.FSM)
				active := ring.Active().ID == key.ID
				err := s.Keyring.Verify(token, me)
				if keyring.Ring(s.FSM) == ring && (err != nil) != active {
					t.Fatalf("%s: the new key is active: %t; %v", s.ID, active, err)
				}
				activated = active
			}
		}
		c.Restart(leader)
		whole(t, c)
		for _, gone := range []string{token, older} {
			verifies(t, c, gone, false, "revoked")
			published(t, c, kidOf(t, gone), false, "revoked")
		}
		for _, k := range c.Leader().Keyring.Keys() {
			if k.Revoked != (k.ID != key.ID) {
				t.Errorf("%s, %s: revoked %t", k.ID, k.State, k.Revoked)
			}
		}
		verifies(t, c, sign(t, c.Leader()), true, "of the new key")
		v.check(c)
		if kept != kidOf(t, token) {
			t.Error("the token is not of the key that was active")
		}
	})
}

func TestOnlyKeysThatHaveSignedCanBeRevoked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := signing(t, 1, nil)
		k := ready(t, c).Keyring
		later, err := k.Rotate(t.Context(), keyring.RotateOptions{Publish: time.Now().Add(time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := k.Rotate(t.Context(), keyring.RotateOptions{Revoke: []keyring.KeyID{{9}}}); !errors.Is(err, keyring.ErrUnknownKey) {
			t.Errorf("a key that is not there: %v", err)
		}
		if _, err := k.Rotate(t.Context(), keyring.RotateOptions{Revoke: []keyring.KeyID{later.ID}}); err == nil {
			t.Error("a key that has signed nothing was revoked")
		}
		if st, err := k.Status(t.Context()); err != nil || len(k.Keys()) != 2 || len(st.Orphans) != 0 {
			t.Errorf("%d keys and %d orphans after what was refused, %v", len(k.Keys()), len(st.Orphans), err)
		}
	})
}

// TestServerWithoutMaterialVerifiesAll: public keys are in the FSM. Of most of these keys no
// server has material, and some have public halves that nothing can be done with.
func TestServerWithoutMaterialVerifiesAll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := signing(t, 3, nil)
		leader := ready(t, c)
		ours := sign(t, leader)
		good := []outsider{newOutsider(t, "RS256", 1), newOutsider(t, "ES256", 2), newOutsider(t, "EdDSA", 3)}
		dataOnly := newOutsider(t, "EdDSA", 4)
		adopt := func(k meta.NewKey, dataOnly bool) meta.Command {
			return meta.Command{Adopt: &meta.Adopt{Key: k, DataOnly: dataOnly, Time: time.Now().UTC()}}
		}
		cmds := []meta.Command{adopt(dataOnly.newKey(t), true)}
		for _, o := range good {
			cmds = append(cmds, adopt(o.newKey(t), false))
		}
		for i, odd := range [][]byte{{0}, []byte("no key at all"), good[0].Public(t)[:100], good[1].Public(t), append(good[2].Public(t), 0)} {
			k := good[2].newKey(t)
			k.ID, k.Public = keyring.KeyID{byte(i) * 0x30, 15: 99}, odd // some before the good ones, some after
			cmds = append(cmds, adopt(k, false))
		}
		if err := keyring.Propose(t.Context(), leader.Keyring, cmds...); err != nil {
			t.Fatal(err)
		}
		bare := follower(c)
		c.OnEvent(func(e keyringtest.Event) keyringtest.Reply {
			return keyringtest.Reply{Hang: e.Server == bare && e.Kind == "call"}
		})
		keyring.DropActive(bare.Keyring)
		time.Sleep(time.Minute) // virtual
		want := []keyring.KeyID{kidOf(t, ours), good[0].id, good[1].id, good[2].id}
		for _, s := range c.Servers {
			if got := kids(t, s.Keyring.JWKS()); !slices.Equal(got, want) {
				t.Errorf("%s: the JWKS has %v, want %v", s.ID, got, want)
			}
		}
		for _, o := range good {
			verifies(t, c, o.token(time.Hour), true, o.Algorithm)
		}
		verifies(t, c, ours, true, "our own")
		verifies(t, c, dataOnly.token(time.Hour), false, "adopted for data only")
		odd := good[2]
		odd.id = keyring.KeyID{15: 99}
		verifies(t, c, odd.token(time.Hour), false, "of a key with an odd public half")
	})
}

func TestVerifyWantsWhatItIsToldTo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := signing(t, 1, func(cfg *keyring.Config) { cfg.Rotation.Every = -1 })
		leader := ready(t, c)
		k := leader.Keyring
		token := sign(t, leader, map[string]any{"aud": []string{"me", "you"}})
		aud := func(a ...string) keyring.Expect { return keyring.Expect{Audience: a} }
		for name, e := range map[string]keyring.Expect{
			"one": aud("me"), "the other": aud("you"), "any of them": aud("nobody", "you"), "the subject": {Audience: []string{"me"}, Subject: "job:web"},
		} {
			if err := k.Verify(token, e); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		for name, e := range map[string]keyring.Expect{
			"nobody": aud("nobody"), "part of the name": aud("m"), "another case": aud("ME"), "empty": aud(""),
			"another subject": {Audience: []string{"me"}, Subject: "job:db"},
		} {
			if err := k.Verify(token, e); !errors.Is(err, keyring.ErrToken) {
				t.Errorf("%s: %v", name, err)
			}
		}
		forged := insider(t, leader, kidOf(t, token))
		soon := time.Now().Add(time.Hour).Unix()
		for name, claims := range map[string]string{
			"no exp":         `{"iss":"` + tokenIssuer + `","aud":"me"}`,
			"no iss":         fmt.Sprintf(`{"aud":"me","exp":%d}`, soon),
			"another iss":    fmt.Sprintf(`{"iss":"https://other.example","aud":"me","exp":%d}`, soon),
			"no aud":         fmt.Sprintf(`{"iss":%q,"exp":%d}`, tokenIssuer, soon),
			"exp twice":      fmt.Sprintf(`{"iss":%q,"aud":"me","exp":1,"exp":%d}`, tokenIssuer, soon),
			"a deep pair":    fmt.Sprintf(`{"iss":%q,"aud":"me","exp":%d,"x":[{"a":1,"a":2}]}`, tokenIssuer, soon),
			"not yet":        fmt.Sprintf(`{"iss":%q,"aud":"me","exp":%d,"nbf":%d}`, tokenIssuer, soon, soon-1),
			"from to-morrow": fmt.Sprintf(`{"iss":%q,"aud":"me","exp":%d,"iat":%d}`, tokenIssuer, soon, soon-1),
			"no object":      `"me"`,
		} {
			for _, e := range []keyring.Expect{me, {Audience: me.Audience, Nomad: true}} {
				if err := k.Verify(forged.Token(forged.Header(forged.id.String()), claims), e); !errors.Is(err, keyring.ErrToken) {
					t.Errorf("%s, %+v: %v", name, e, err)
				}
			}
		}
		time.Sleep(24*time.Hour + time.Minute - 2*time.Second) // virtual
		if err := k.Verify(token, me); err != nil {
			t.Errorf("within the leeway: %v", err)
		}
		time.Sleep(2 * time.Second) // virtual
		if err := k.Verify(token, me); !errors.Is(err, keyring.ErrToken) || !strings.Contains(err.Error(), "expired") {
			t.Errorf("expired: %v", err)
		}
	})
}

// TestCallersMistakesAreNoFaultOfTheToken, but claims that don't fit are.
func TestCallersMistakesAreNoFaultOfTheToken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := signing(t, 1, nil)
		leader := ready(t, c)
		token := sign(t, leader)
		for name, err := range map[string]error{
			"no audience": leader.Keyring.Verify(token, keyring.Expect{}),
			"no pointer":  leader.Keyring.Verify(token, me, map[string]any{}),
			"nil":         leader.Keyring.Verify(token, me, nil),
		} {
			if err == nil || errors.Is(err, keyring.ErrToken) {
				t.Errorf("%s: %v", name, err)
			}
		}
		var claims struct{ Sub int }
		if err := leader.Keyring.Verify(token, me, &claims); !errors.Is(err, keyring.ErrToken) {
			t.Errorf("a sub that is no number: %v", err)
		}
	})
}

// TestRefusedTokenLeavesTheClaimsAlone: nothing of it may be taken for true.
func TestRefusedTokenLeavesTheClaimsAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := signing(t, 1, nil)
		leader := ready(t, c)
		token := sign(t, leader)
		claims := map[string]any{}
		for _, err := range []error{
			leader.Keyring.Verify(token, keyring.Expect{Audience: []string{"you"}}, &claims),
			leader.Keyring.Verify(token[:len(token)-4]+"AAAA", me, &claims),
			leader.Keyring.Verify(newOutsider(t, "EdDSA", 1).token(time.Hour), me, &claims),
		} {
			if !errors.Is(err, keyring.ErrToken) || len(claims) > 0 {
				t.Errorf("%v, %v", claims, err)
			}
		}
	})
}

// TestKidHasTheFormOfAKeyID: anything else is refused for that, not for being unknown.
func TestKidHasTheFormOfAKeyID(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := signing(t, 1, nil)
		leader := ready(t, c)
		id := kidOf(t, sign(t, leader))
		o := insider(t, leader, id)
		claims := fmt.Sprintf(`{"iss":%q,"aud":"me","exp":%d}`, tokenIssuer, time.Now().Add(time.Hour).Unix())
		for _, kid := range []string{strings.ToUpper(id.String()), "{" + id.String() + "}", strings.ReplaceAll(id.String(), "-", ""), "../" + id.String(), "1"} {
			err := leader.Keyring.Verify(o.Token(o.Header(kid), claims), me)
			if !errors.Is(err, keyring.ErrToken) || errors.Is(err, keyring.ErrUnknownKey) {
				t.Errorf("%s: %v", kid, err)
			}
		}
		unknown := keyring.KeyID{1}
		if err := leader.Keyring.Verify(o.Token(o.Header(unknown.String()), claims), me); !errors.Is(err, keyring.ErrUnknownKey) {
			t.Errorf("a key that is not there: %v", err)
		}
	})
}

// TestEveryChangedByteOfATokenIsRefused, and every cut.
func TestEveryChangedByteOfATokenIsRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for _, alg := range []string{"RS256", "ES256", "EdDSA"} {
			c := signing(t, 1, func(cfg *keyring.Config) { cfg.Tokens.Algorithm = alg })
			leader := ready(t, c)
			token := []byte(sign(t, leader))
			refuse := func(what string, i int, token []byte) {
				t.Helper()
				if err := leader.Keyring.Verify(string(token), me); !errors.Is(err, keyring.ErrToken) {
					t.Errorf("%s: byte %d %s: %v", alg, i, what, err)
				}
			}
			for i, was := range token {
				for bit := range 8 {
					token[i] = was ^ 1<<bit
					refuse("with a bit flipped", i, token)
				}
				for _, c := range "Aaz09-_.=\n\r \x00\xff" {
					if token[i] = byte(c); token[i] != was {
						refuse(fmt.Sprintf("made %q", c), i, token)
					}
				}
				token[i] = was
				refuse("and all after it cut off", i, token[:i])
				refuse("taken out", i, slices.Delete(slices.Clone(token), i, i+1))
				refuse("doubled", i, slices.Insert(slices.Clone(token), i, was))
			}
		}
	})
}

// TestTokensThatNomadSignedVerify once their key is adopted, signing half and all. Nomad's are
// what the standard library makes of them here: those of 1.4 to 1.6 have neither exp nor aud, and
// the root key itself is the seed of their key; later ones have an aud and may have an exp.
func TestTokensThatNomadSignedVerify(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := signingAt(t, time.Hour, 3, nil)
		ready(t, c)
		root := []byte("32 bytes that were a root key...")
		old := outsider{keyringtest.Pair{Algorithm: "EdDSA", Private: ed25519.NewKeyFromSeed(root)}, keyring.KeyID{15: 1}}
		late := newOutsider(t, "RS256", 2)
		const names = `"nomad_namespace":"default","nomad_job_id":"example","nomad_allocation_id":"f6fa6b50-2047-2000-5f3d-c5b049142830","nomad_task":"web"`
		at := time.Now().Unix()
		token := func(o outsider, claims string) string {
			return o.Token(o.Header(o.id.String()), fmt.Sprintf("{%s,%s\"nbf\":%d,\"iat\":%d}", names, claims, at, at))
		}
		good := map[string]string{
			"of 1.4":           token(old, ""),
			"of 1.8":           token(late, `"aud":"nomadproject.io","jti":"a2624743-f8b2-4d1e-8056-678b7bfa4126","sub":"global:default:example:web:web:default",`),
			"for ten years":    token(late, fmt.Sprintf(`"aud":["consul.io","nomadproject.io"],"exp":%d,`, at+10*365*24*3600)),
			"with our issuer":  token(late, `"iss":"`+tokenIssuer+`","aud":"nomadproject.io",`),
			"with all of that": token(late, fmt.Sprintf(`"iss":%q,"aud":"nomadproject.io","exp":%d,`, tokenIssuer, at+3600)),
		}
		bad := map[string]string{
			"for another":         token(late, `"aud":"consul.io",`),
			"of another issuer":   token(late, `"iss":"https://nomad.example","aud":"nomadproject.io",`),
			"expired":             token(late, fmt.Sprintf(`"aud":"nomadproject.io","exp":%d,`, at-3600)),
			"signed by the other": outsider{late.Pair, old.id}.token(time.Hour),
		}
		expect := keyring.Expect{Audience: []string{"nomadproject.io"}, Nomad: true}
		all := func(tokens map[string]string, e keyring.Expect, want bool, when string) {
			t.Helper()
			for name, token := range tokens {
				for _, s := range c.Live() {
					var claims struct {
						Job string `json:"nomad_job_id"`
					}
					err := s.Keyring.Verify(token, e, &claims)
					if want && (err != nil || claims.Job != "example") || !want && !errors.Is(err, keyring.ErrToken) {
						t.Errorf("%s: %s: %s: %+v, %v", when, s.ID, name, claims, err)
					}
				}
			}
		}
		adopt := func(dataOnly bool) {
			t.Helper()
			for _, o := range []outsider{old, late} {
				propose(t, c, meta.Command{Adopt: &meta.Adopt{Key: o.newKey(t), DataOnly: dataOnly, Time: time.Now().UTC()}})
			}
		}
		adopt(true)
		all(good, expect, false, "adopted for data only")
		adopt(false)
		all(good, expect, true, "adopted")
		all(bad, expect, false, "adopted")
		strict := keyring.Expect{Audience: expect.Audience}
		all(map[string]string{"complete": good["with all of that"]}, strict, true, "held to everything")
		delete(good, "with all of that")
		all(good, strict, false, "held to everything")
		time.Sleep(24*time.Hour + 2*time.Minute) // virtual
		all(good, expect, false, "a day later")
	})
}
