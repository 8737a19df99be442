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
		c := keyringtest.NewSigningAt(t, time.Hour, 3, func(cfg *keyring.Config) { cfg.Rotation.Every = -1 })
		leader := keyringtest.Ready(t, c)
		key, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{Publish: time.Now().Add(time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		keyringtest.AwaitKeys(t, c)
		endless := keyringtest.Insider(t, leader, key.ID).TokenFor(1e5 * time.Hour) // longer than Sign would allow
		state := func(want keyring.State, verify bool) {
			t.Helper()
			keyringtest.AwaitRing(t, c)
			for _, k := range leader.Keyring.Keys() {
				if k.ID == key.ID && k.State != want {
					t.Fatalf("the key is %s, want %s", k.State, want)
				}
			}
			keyringtest.CheckVerifies(t, c, endless, verify, string(want))
			keyringtest.CheckPublished(t, c, key.ID, verify, string(want))
		}
		state(keyring.StatePrepublished, true)
		time.Sleep(time.Hour + time.Second) // virtual
		state(keyring.StateActive, true)
		token := keyringtest.Sign(t, leader)
		if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		state(keyring.StateInactive, true)
		keyringtest.MustPropose(t, c, meta.Command{Rekey: &meta.Rekey{ID: meta.KeyID(key.ID)}})
		state(keyring.StateRekeying, true)
		if st, err := leader.Keyring.Status(t.Context()); err != nil || !strings.Contains(fmt.Sprint(st.Problems), "Config.Data is nil") {
			t.Errorf("a leader that can't move the data: %v, %v", st.Problems, err)
		}
		keyringtest.Deprecate(t, c, key.ID)
		state(keyring.StateDeprecated, true)

		end := keyring.Ring(leader.FSM).Key(meta.KeyID(key.ID)).Retired.Add(24*time.Hour + time.Minute)
		time.Sleep(time.Until(end) - 1) // virtual
		if err := leader.Keyring.Verify(token, keyringtest.ForMe); errors.Is(err, keyring.ErrUnknownKey) {
			t.Errorf("the key is gone before its last token: %v", err)
		}
		state(keyring.StateDeprecated, true)
		time.Sleep(time.Nanosecond) // virtual
		state(keyring.StateDeprecated, false)
		keyringtest.CheckVerifies(t, c, token, false, "when the time is over")
		keyringtest.MustPropose(t, c, meta.Command{Remove: &meta.Remove{ID: meta.KeyID(key.ID), From: meta.StateDeprecated, Time: time.Now().UTC()}})
		state("removed", false)
	})
}

// TestTokensOfARemovedKeyAreRefused at once, within the life of the token too.
func TestTokensOfARemovedKeyAreRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewSigning(t, 3, nil)
		leader := keyringtest.Ready(t, c)
		token := keyringtest.Sign(t, leader)
		if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		keyringtest.AwaitKeys(t, c)
		keyringtest.CheckVerifies(t, c, token, true, "before")
		keyringtest.MustPropose(t, c, meta.Command{Remove: &meta.Remove{ID: meta.KeyID(keyringtest.KeyIDOf(t, token)), From: meta.StateInactive, Force: true, Time: time.Now().UTC()}})
		keyringtest.CheckVerifies(t, c, token, false, "removed")
		keyringtest.CheckPublished(t, c, keyringtest.KeyIDOf(t, token), false, "removed")
		for _, s := range c.Live() {
			if err := s.Keyring.Verify(token, keyringtest.ForMe); !errors.Is(err, keyring.ErrUnknownKey) {
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
		c := keyringtest.NewSigning(t, 3, func(cfg *keyring.Config) { cfg.Rotation.Every = -1 })
		leader := keyringtest.Ready(t, c)
		v := keyringtest.Vault{TB: t}
		v.Seal(leader)
		older := keyringtest.Sign(t, leader)
		if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		token, kept := keyringtest.Sign(t, leader), leader.Keyring.Keys()[0].ID
		v.Seal(leader)
		key, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{
			Publish: time.Now().Add(time.Hour), Revoke: []keyring.KeyID{keyringtest.KeyIDOf(t, token), keyringtest.KeyIDOf(t, older)},
		})
		if err != nil {
			t.Fatal(err)
		}
		keyringtest.AwaitKeys(t, c)
		keyringtest.CheckVerifies(t, c, token, true, "before the activation")
		keyringtest.MustPropose(t, c, meta.Command{Rekey: &meta.Rekey{ID: meta.KeyID(keyringtest.KeyIDOf(t, older))}})
		keyringtest.CheckVerifies(t, c, older, true, "before the activation, rekeying")

		c.Stop(leader) // what was begun, the next leader ends
		for activated := false; !activated; time.Sleep(time.Second) {
			for _, s := range c.Live() {
				ring := keyring.Ring(s.FSM)
				active := keyring.KeyID(ring.Active().ID) == key.ID
				err := s.Keyring.Verify(token, keyringtest.ForMe)
				if keyring.Ring(s.FSM) == ring && (err != nil) != active {
					t.Fatalf("%s: the new key is active: %t; %v", s.ID, active, err)
				}
				activated = active
			}
		}
		c.Restart(leader)
		keyringtest.AwaitKeys(t, c)
		for _, gone := range []string{token, older} {
			keyringtest.CheckVerifies(t, c, gone, false, "revoked")
			keyringtest.CheckPublished(t, c, keyringtest.KeyIDOf(t, gone), false, "revoked")
		}
		for _, k := range c.Leader().Keyring.Keys() {
			if k.Revoked != (k.ID != key.ID) {
				t.Errorf("%s, %s: revoked %t", k.ID, k.State, k.Revoked)
			}
		}
		keyringtest.CheckVerifies(t, c, keyringtest.Sign(t, c.Leader()), true, "of the new key")
		v.Check(c)
		if kept != keyringtest.KeyIDOf(t, token) {
			t.Error("the token is not of the key that was active")
		}
	})
}

func TestOnlyKeysThatHaveSignedCanBeRevoked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewSigning(t, 1, nil)
		k := keyringtest.Ready(t, c).Keyring
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
		c := keyringtest.NewSigning(t, 3, nil)
		leader := keyringtest.Ready(t, c)
		ours := keyringtest.Sign(t, leader)
		good := []keyringtest.Outsider{keyringtest.NewOutsider(t, "RS256", 1), keyringtest.NewOutsider(t, "ES256", 2), keyringtest.NewOutsider(t, "EdDSA", 3)}
		dataOnly := keyringtest.NewOutsider(t, "EdDSA", 4)
		adopt := func(k meta.NewKey, dataOnly bool) meta.Command {
			return meta.Command{Adopt: &meta.Adopt{Key: k, DataOnly: dataOnly, Time: time.Now().UTC()}}
		}
		cmds := []meta.Command{adopt(dataOnly.NewKey(t), true)}
		for _, o := range good {
			cmds = append(cmds, adopt(o.NewKey(t), false))
		}
		for i, odd := range [][]byte{{0}, []byte("no key at all"), good[0].Public(t)[:100], good[1].Public(t), append(good[2].Public(t), 0)} {
			k := good[2].NewKey(t)
			k.ID, k.Public = meta.KeyID{byte(i) * 0x30, 15: 99}, odd // some before the good ones, some after
			cmds = append(cmds, adopt(k, false))
		}
		if err := keyring.Propose(t.Context(), leader.Keyring, cmds...); err != nil {
			t.Fatal(err)
		}
		bare := keyringtest.Follower(c)
		c.OnEvent(func(e keyringtest.Event) keyringtest.Reply {
			return keyringtest.Reply{Hang: e.Server == bare && e.Kind == "call"}
		})
		dropActive(bare.Keyring)
		time.Sleep(time.Minute) // virtual
		want := []keyring.KeyID{keyringtest.KeyIDOf(t, ours), good[0].ID, good[1].ID, good[2].ID}
		for _, s := range c.Servers {
			if got := keyringtest.KeyIDs(t, s.Keyring.JWKS()); !slices.Equal(got, want) {
				t.Errorf("%s: the JWKS has %v, want %v", s.ID, got, want)
			}
		}
		for _, o := range good {
			keyringtest.CheckVerifies(t, c, o.TokenFor(time.Hour), true, o.Algorithm)
		}
		keyringtest.CheckVerifies(t, c, ours, true, "our own")
		keyringtest.CheckVerifies(t, c, dataOnly.TokenFor(time.Hour), false, "adopted for data only")
		odd := good[2]
		odd.ID = keyring.KeyID{15: 99}
		keyringtest.CheckVerifies(t, c, odd.TokenFor(time.Hour), false, "of a key with an odd public half")
	})
}

func TestVerifyWantsWhatItIsToldTo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewSigning(t, 1, func(cfg *keyring.Config) { cfg.Rotation.Every = -1 })
		leader := keyringtest.Ready(t, c)
		k := leader.Keyring
		token := keyringtest.Sign(t, leader, map[string]any{"aud": []string{"me", "you"}})
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
		forged := keyringtest.Insider(t, leader, keyringtest.KeyIDOf(t, token))
		soon := time.Now().Add(time.Hour).Unix()
		for name, claims := range map[string]string{
			"no exp":         `{"iss":"` + keyringtest.TokenIssuer + `","aud":"me"}`,
			"no iss":         fmt.Sprintf(`{"aud":"me","exp":%d}`, soon),
			"another iss":    fmt.Sprintf(`{"iss":"https://other.example","aud":"me","exp":%d}`, soon),
			"no aud":         fmt.Sprintf(`{"iss":%q,"exp":%d}`, keyringtest.TokenIssuer, soon),
			"exp twice":      fmt.Sprintf(`{"iss":%q,"aud":"me","exp":1,"exp":%d}`, keyringtest.TokenIssuer, soon),
			"a deep pair":    fmt.Sprintf(`{"iss":%q,"aud":"me","exp":%d,"x":[{"a":1,"a":2}]}`, keyringtest.TokenIssuer, soon),
			"not yet":        fmt.Sprintf(`{"iss":%q,"aud":"me","exp":%d,"nbf":%d}`, keyringtest.TokenIssuer, soon, soon-1),
			"from to-morrow": fmt.Sprintf(`{"iss":%q,"aud":"me","exp":%d,"iat":%d}`, keyringtest.TokenIssuer, soon, soon-1),
			"no object":      `"me"`,
		} {
			for _, e := range []keyring.Expect{keyringtest.ForMe, {Audience: keyringtest.ForMe.Audience, Nomad: true}} {
				if err := k.Verify(forged.Token(forged.Header(forged.ID.String()), claims), e); !errors.Is(err, keyring.ErrToken) {
					t.Errorf("%s, %+v: %v", name, e, err)
				}
			}
		}
		time.Sleep(24*time.Hour + time.Minute - 2*time.Second) // virtual
		if err := k.Verify(token, keyringtest.ForMe); err != nil {
			t.Errorf("within the leeway: %v", err)
		}
		time.Sleep(2 * time.Second) // virtual
		if err := k.Verify(token, keyringtest.ForMe); !errors.Is(err, keyring.ErrToken) || !strings.Contains(err.Error(), "expired") {
			t.Errorf("expired: %v", err)
		}
	})
}

// TestCallersMistakesAreNoFaultOfTheToken, but claims that don't fit are.
func TestCallersMistakesAreNoFaultOfTheToken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewSigning(t, 1, nil)
		leader := keyringtest.Ready(t, c)
		token := keyringtest.Sign(t, leader)
		for name, err := range map[string]error{
			"no audience": leader.Keyring.Verify(token, keyring.Expect{}),
			"no pointer":  leader.Keyring.Verify(token, keyringtest.ForMe, map[string]any{}),
			"nil":         leader.Keyring.Verify(token, keyringtest.ForMe, nil),
		} {
			if err == nil || errors.Is(err, keyring.ErrToken) {
				t.Errorf("%s: %v", name, err)
			}
		}
		var claims struct{ Sub int }
		if err := leader.Keyring.Verify(token, keyringtest.ForMe, &claims); !errors.Is(err, keyring.ErrToken) {
			t.Errorf("a sub that is no number: %v", err)
		}
	})
}

// TestRefusedTokenLeavesTheClaimsAlone: nothing of it may be taken for true.
func TestRefusedTokenLeavesTheClaimsAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewSigning(t, 1, nil)
		leader := keyringtest.Ready(t, c)
		token := keyringtest.Sign(t, leader)
		claims := map[string]any{}
		for _, err := range []error{
			leader.Keyring.Verify(token, keyring.Expect{Audience: []string{"you"}}, &claims),
			leader.Keyring.Verify(token[:len(token)-4]+"AAAA", keyringtest.ForMe, &claims),
			leader.Keyring.Verify(keyringtest.NewOutsider(t, "EdDSA", 1).TokenFor(time.Hour), keyringtest.ForMe, &claims),
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
		c := keyringtest.NewSigning(t, 1, nil)
		leader := keyringtest.Ready(t, c)
		id := keyringtest.KeyIDOf(t, keyringtest.Sign(t, leader))
		o := keyringtest.Insider(t, leader, id)
		claims := fmt.Sprintf(`{"iss":%q,"aud":"me","exp":%d}`, keyringtest.TokenIssuer, time.Now().Add(time.Hour).Unix())
		for _, kid := range []string{strings.ToUpper(id.String()), "{" + id.String() + "}", strings.ReplaceAll(id.String(), "-", ""), "../" + id.String(), "1"} {
			err := leader.Keyring.Verify(o.Token(o.Header(kid), claims), keyringtest.ForMe)
			if !errors.Is(err, keyring.ErrToken) || errors.Is(err, keyring.ErrUnknownKey) {
				t.Errorf("%s: %v", kid, err)
			}
		}
		unknown := keyring.KeyID{1}
		if err := leader.Keyring.Verify(o.Token(o.Header(unknown.String()), claims), keyringtest.ForMe); !errors.Is(err, keyring.ErrUnknownKey) {
			t.Errorf("a key that is not there: %v", err)
		}
	})
}

// TestEveryChangedByteOfATokenIsRefused, and every cut.
func TestEveryChangedByteOfATokenIsRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for _, alg := range []string{"RS256", "ES256", "EdDSA"} {
			c := keyringtest.NewSigning(t, 1, func(cfg *keyring.Config) { cfg.Tokens.Algorithm = alg })
			leader := keyringtest.Ready(t, c)
			token := []byte(keyringtest.Sign(t, leader))
			refuse := func(what string, i int, token []byte) {
				t.Helper()
				if err := leader.Keyring.Verify(string(token), keyringtest.ForMe); !errors.Is(err, keyring.ErrToken) {
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
		c := keyringtest.NewSigningAt(t, time.Hour, 3, nil)
		keyringtest.Ready(t, c)
		root := []byte("32 bytes that were a root key...")
		old := keyringtest.Outsider{Pair: keyringtest.Pair{Algorithm: "EdDSA", Private: ed25519.NewKeyFromSeed(root)}, ID: keyring.KeyID{15: 1}}
		late := keyringtest.NewOutsider(t, "RS256", 2)
		const names = `"nomad_namespace":"default","nomad_job_id":"example","nomad_allocation_id":"f6fa6b50-2047-2000-5f3d-c5b049142830","nomad_task":"web"`
		at := time.Now().Unix()
		token := func(o keyringtest.Outsider, claims string) string {
			return o.Token(o.Header(o.ID.String()), fmt.Sprintf("{%s,%s\"nbf\":%d,\"iat\":%d}", names, claims, at, at))
		}
		good := map[string]string{
			"of 1.4":           token(old, ""),
			"of 1.8":           token(late, `"aud":"nomadproject.io","jti":"a2624743-f8b2-4d1e-8056-678b7bfa4126","sub":"global:default:example:web:web:default",`),
			"for ten years":    token(late, fmt.Sprintf(`"aud":["consul.io","nomadproject.io"],"exp":%d,`, at+10*365*24*3600)),
			"with our issuer":  token(late, `"iss":"`+keyringtest.TokenIssuer+`","aud":"nomadproject.io",`),
			"with all of that": token(late, fmt.Sprintf(`"iss":%q,"aud":"nomadproject.io","exp":%d,`, keyringtest.TokenIssuer, at+3600)),
		}
		bad := map[string]string{
			"for another":         token(late, `"aud":"consul.io",`),
			"of another issuer":   token(late, `"iss":"https://nomad.example","aud":"nomadproject.io",`),
			"expired":             token(late, fmt.Sprintf(`"aud":"nomadproject.io","exp":%d,`, at-3600)),
			"signed by the other": keyringtest.Outsider{Pair: late.Pair, ID: old.ID}.TokenFor(time.Hour),
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
			for _, o := range []keyringtest.Outsider{old, late} {
				keyringtest.MustPropose(t, c, meta.Command{Adopt: &meta.Adopt{Key: o.NewKey(t), DataOnly: dataOnly, Time: time.Now().UTC()}})
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
