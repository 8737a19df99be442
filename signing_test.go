package keyring_test

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/jwt"
	"example.com/keyring/internal/keyringtest"
	"github.com/hashicorp/raft"
)

// TestLeaderSignsAndEveryServerVerifies, with each algorithm.
func TestLeaderSignsAndEveryServerVerifies(t *testing.T) {
	t.Parallel()
	for _, alg := range []string{"RS256", "ES256", "EdDSA"} {
		synctest.Test(t, func(t *testing.T) {
			c := keyringtest.NewSigning(t, 3, func(cfg *keyring.Config) { cfg.Tokens.Algorithm = alg })
			leader := keyringtest.Ready(t, c)
			keyringtest.AwaitKeys(t, c)
			type own struct {
				Namespace string   `json:"ns"`
				Audience  []string `json:"aud"`
			}
			before := time.Now()
			token, err := leader.Keyring.Sign(own{"prod", []string{"you", "me"}}, map[string]any{"sub": "job:web"})
			if err != nil {
				t.Fatal(err)
			}
			if want := `{"alg":"` + alg + `","kid":"` + leader.Keyring.Keys()[0].ID.String() + `","typ":"JWT"}`; string(keyringtest.DecodedPart(t, token, 0)) != want {
				t.Errorf("header %s, want %s", keyringtest.DecodedPart(t, token, 0), want)
			}
			for _, s := range c.Servers {
				var got own
				var registered struct {
					Iss, Sub, Jti string
					Iat, Nbf, Exp int64
				}
				if err := s.Keyring.Verify(token, keyring.Expect{Audience: []string{"me"}, Subject: "job:web"}, &got, &registered); err != nil {
					t.Errorf("%s, %s: %v", alg, s.ID, err)
				}
				r := registered
				if got.Namespace != "prod" || r.Iss != keyringtest.TokenIssuer || r.Sub != "job:web" || len(r.Jti) < 26 ||
					r.Iat != before.Unix() || r.Nbf != before.Add(-time.Minute).Unix() || r.Exp != before.Add(24*time.Hour).Unix() {
					t.Errorf("%s, %s: %+v, %+v", alg, s.ID, got, registered)
				}
				if s == leader {
					continue
				}
				var notLeader keyring.NotLeaderError
				if token, err := s.Keyring.Sign(keyringtest.ClaimsForMe()); !errors.As(err, &notLeader) || notLeader.Leader != leader.ID || token != "" {
					t.Errorf("%s signs: %q, %v", s.ID, token, err)
				}
			}
		})
	}
}

func TestTokenIDsAreDrawn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewSigning(t, 1, nil)
		leader := keyringtest.Ready(t, c)
		seen := map[string]bool{}
		for range 1000 {
			var claims struct{ Jti string }
			if err := json.Unmarshal(keyringtest.DecodedPart(t, keyringtest.Sign(t, leader), 1), &claims); err != nil || seen[claims.Jti] {
				t.Fatalf("%q, %v", claims.Jti, err)
			}
			seen[claims.Jti] = true
		}
	})
}

func TestSignRefusesWhatVerifyWould(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewSigning(t, 1, func(cfg *keyring.Config) { cfg.Tokens.MaxTTL = time.Hour })
		leader := keyringtest.Ready(t, c)
		in := func(d time.Duration) int64 { return time.Now().Add(d).Unix() }
		for name, claims := range map[string]any{
			"exp beyond MaxTTL":    map[string]any{"exp": in(time.Hour + time.Second)},
			"exp in a hundred y":   map[string]any{"exp": in(100 * 365 * 24 * time.Hour)},
			"exp has passed":       map[string]any{"exp": in(0)},
			"exp is zero":          map[string]any{"exp": 0},
			"exp is text":          map[string]any{"exp": "tomorrow"},
			"another issuer":       map[string]any{"iss": keyringtest.TokenIssuer + "/"},
			"iat in the future":    map[string]any{"iat": in(time.Hour)},
			"nbf not before exp":   map[string]any{"nbf": in(time.Hour)},
			"Exp in another case":  map[string]any{"Exp": in(time.Minute)},
			"aud is a number":      map[string]any{"aud": 7},
			"a claim twice":        json.RawMessage(`{"a":1,"a":2}`),
			"a claim in two cases": map[string]any{"a": 1, "A": 2},
			"no object":            []string{"sub", "x"},
			"a string":             "sub",
			"nil":                  nil,
			"not JSON":             func() {},
			"longer than 16 KiB":   map[string]any{"a": strings.Repeat("a", 16<<10)},
		} {
			if token, err := leader.Keyring.Sign(keyringtest.ClaimsForMe(), claims); err == nil || token != "" || errors.Is(err, keyring.ErrToken) {
				t.Errorf("%s: %q, %v", name, token, err)
			}
		}
		longest := map[string]any{"exp": in(time.Hour), "iss": keyringtest.TokenIssuer, "iat": in(-time.Hour), "nbf": in(30 * time.Minute), "jti": "mine"}
		token := keyringtest.Sign(t, leader, longest)
		time.Sleep(31 * time.Minute) // virtual
		keyringtest.CheckVerifies(t, c, token, true, "the longest there can be")
	})
}

// TestSignWithoutIssuer: there is none to fill in, and Verify looks at none.
func TestSignWithoutIssuer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{})
		leader := keyringtest.Ready(t, c)
		var claims map[string]any
		if err := leader.Keyring.Verify(keyringtest.Sign(t, leader), keyringtest.ForMe, &claims); err != nil || claims["iss"] != nil {
			t.Errorf("%v, %v", claims, err)
		}
		if err := leader.Keyring.Verify(keyringtest.Sign(t, leader, map[string]any{"iss": "x"}), keyringtest.ForMe); err != nil {
			t.Error(err)
		}
	})
}

// TestSignIsATokenOrAnError: while the cluster has no leader, no key, a leader that lacks the
// material of the key, and after Close.
func TestSignIsATokenOrAnError(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewSigning(t, 3, nil)
		never := func(what string, want error) {
			t.Helper()
			for _, s := range c.Live() {
				token, err := s.Keyring.Sign(keyringtest.ClaimsForMe())
				if token != "" || !errors.Is(err, want) && !errors.Is(err, keyring.ErrNotLeader) {
					t.Errorf("%s: %s: %q, %v", what, s.ID, token, err)
				}
			}
		}
		never("before an election", keyring.ErrNotLeader)
		for c.Leader(); len(c.Servers[0].Keyring.Keys()) == 0; time.Sleep(time.Millisecond) {
			never("before the first key", keyring.ErrNotReady)
		}
		leader := keyringtest.Ready(t, c)
		keyringtest.Sign(t, leader)
		keyringtest.AwaitKeys(t, c)

		// The material is gone from memory and disk, and nobody gives it back.
		c.OnEvent(func(e keyringtest.Event) keyringtest.Reply { return keyringtest.Reply{Hang: e.Kind == "call"} })
		signer := signerOf(leader)
		dropActive(leader.Keyring)
		never("without material", keyring.ErrKeyMissing)
		if token, err := signer.Sign(jwt.JWT, []byte(`{}`)); err != jwt.ErrWiped {
			t.Errorf("the dropped key signs: %q, %v", token, err)
		}
		c.OnEvent(nil)
		keyringtest.Ready(t, c)
		if token := keyringtest.Sign(t, c.Leader()); token == "" {
			t.Error("an empty token")
		}

		k := c.Leader().Keyring
		signer = signerOf(c.Leader())
		if err := k.Close(); err != nil {
			t.Fatal(err)
		}
		if token, err := k.Sign(keyringtest.ClaimsForMe()); token != "" || !errors.Is(err, keyring.ErrClosed) {
			t.Errorf("after Close: %q, %v", token, err)
		}
		if token, err := signer.Sign(jwt.JWT, []byte(`{}`)); err != jwt.ErrWiped {
			t.Errorf("after Close the key signs: %q, %v", token, err)
		}
	})
}

// TestLeaderThatWasSignsNothing, though it has just done so.
func TestLeaderThatWasSignsNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewSigning(t, 3, nil)
		old := keyringtest.Ready(t, c)
		keyringtest.AwaitKeys(t, c)
		keyringtest.Sign(t, old)
		if err := old.Raft.LeadershipTransfer().Error(); err != nil {
			t.Fatal(err)
		}
		if next := keyringtest.Ready(t, c); next == old || keyringtest.Sign(t, next) == "" {
			t.Errorf("%s leads", next.ID)
		}
		if token, err := old.Keyring.Sign(keyringtest.ClaimsForMe()); token != "" || !errors.Is(err, keyring.ErrNotLeader) {
			t.Errorf("%q, %v", token, err)
		}
	})
}

// TestNewLeaderSignsWithTheSameKey: the signing half is replicated with the rest.
func TestNewLeaderSignsWithTheSameKey(t *testing.T) {
	t.Parallel()
	for _, alg := range []string{"RS256", "ES256", "EdDSA"} {
		synctest.Test(t, func(t *testing.T) {
			c := keyringtest.NewSigning(t, 3, func(cfg *keyring.Config) { cfg.Tokens.Algorithm = alg })
			leader := keyringtest.Ready(t, c)
			keyringtest.AwaitKeys(t, c)
			token := keyringtest.Sign(t, leader)
			for range 2 {
				keyringtest.Replace(c, leader) // with its disk
				next := keyringtest.Ready(t, c)
				if again := keyringtest.Sign(t, next); keyringtest.KeyIDOf(t, again) != keyringtest.KeyIDOf(t, token) || next == leader {
					t.Errorf("%s: %s signs with %s, not %s", alg, next.ID, keyringtest.KeyIDOf(t, again), keyringtest.KeyIDOf(t, token))
				} else {
					keyringtest.CheckVerifies(t, c, again, true, "of the new leader")
				}
				keyringtest.AwaitKeys(t, c)
				keyringtest.CheckVerifies(t, c, token, true, "of a leader that is gone")
				leader = next
			}
		})
	}
}

// TestI4OnlyTheActiveKeySigns: tokens are signed without pause while keys are prepublished,
// rotated and revoked. Each has the key that was active when it was signed.
func TestI4OnlyTheActiveKeySigns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewSigning(t, 3, nil)
		leader := keyringtest.Ready(t, c)
		k := leader.Keyring
		var tokens []string
		check := func() {
			t.Helper()
			before := keyring.Ring(leader.FSM).Active().ID
			token := keyringtest.Sign(t, leader)
			after := keyring.Ring(leader.FSM).Active().ID
			if id := keyringtest.KeyIDOf(t, token); id != keyring.KeyID(before) && id != keyring.KeyID(after) {
				t.Errorf("signed with %s, active is %s", id, after)
			}
			tokens = append(tokens, token)
		}
		for range 3 {
			later, err := k.Rotate(t.Context(), keyring.RotateOptions{Publish: time.Now().Add(time.Minute)})
			if err != nil {
				t.Fatal(err)
			}
			for range 120 {
				time.Sleep(time.Second) // virtual
				check()
			}
			if got := keyringtest.KeyIDOf(t, tokens[len(tokens)-1]); got != later.ID {
				t.Errorf("a minute later %s signs, not %s", got, later.ID)
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				if _, err := k.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
					t.Error(err)
				}
			}()
			for open := true; open; time.Sleep(time.Millisecond) { // virtual
				select {
				case <-done: // one more, which the new key signs
					open = false
				default:
				}
				check()
			}
		}
		keyringtest.AwaitKeys(t, c)
		for _, token := range tokens {
			keyringtest.CheckVerifies(t, c, token, true, "of whichever key")
		}
		if ids := signersOf(t, tokens); len(ids) != 7 {
			t.Errorf("%d keys have signed, want 7", len(ids))
		}
		if !slices.IsSortedFunc(k.Keys(), func(a, b keyring.Key) int { return b.Activated.Compare(a.Activated) }) {
			t.Error("keys out of order")
		}
	})
}

// signersOf are the keys that signed tokens.
func signersOf(t *testing.T, tokens []string) map[keyring.KeyID]bool {
	t.Helper()
	ids := map[keyring.KeyID]bool{}
	for _, token := range tokens {
		ids[keyringtest.KeyIDOf(t, token)] = true
	}
	return ids
}

// signerOf is what the active key of a server signs with.
func signerOf(s *keyringtest.Server) *jwt.Signer {
	active := keyring.Ring(s.FSM).Active()
	signer, err := keyring.Store(s.Keyring).Signer(active.ID, active.Check)
	if err != nil {
		panic(err)
	}
	return signer
}

// TestI4NewLeaderSealsUnderNoKeyThatWasRetiredBeforeItsTerm: a call that comes in before the new leader has
// applied what the old one has committed may go on after that.
func TestI4NewLeaderSealsUnderNoKeyThatWasRetiredBeforeItsTerm(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var gates keyringtest.Gates
		var mu sync.Mutex
		lookUps := map[raft.ServerID]func(){}
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, App: gates.App, Configure: func(s *keyringtest.Server, cfg *keyring.Config) {
			keyring.OnLookUp(cfg, func() {
				mu.Lock()
				do := lookUps[s.ID]
				mu.Unlock()
				if do != nil {
					do()
				}
			})
		}})
		leader := keyringtest.Ready(t, c)
		keyringtest.AwaitKeys(t, c)
		retired := leader.Keyring.Keys()[0].ID
		next := keyringtest.Follower(c)
		open := gates.Shut(next.ID)
		if err := leader.Raft.Apply([]byte("slow"), time.Minute).Error(); err != nil {
			t.Fatal(err)
		}
		if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := leader.Raft.LeadershipTransferToServer(next.ID, raft.ServerAddress(next.ID)).Error(); err != nil {
			t.Fatal(err)
		}
		for next.Raft.State() != raft.Leader {
			time.Sleep(time.Millisecond)
		}
		called := false
		mu.Lock()
		lookUps[next.ID] = func() {
			if !called {
				called = true
				open()
				time.Sleep(time.Second) // in which it applies what was committed, and its barrier
			}
		}
		mu.Unlock()
		sealed, err := next.Keyring.Encrypt([]byte("x"), nil)
		if id, _ := keyring.CiphertextKeyID(sealed); err == nil && id == retired {
			t.Errorf("sealed under %s, which was retired before", id)
		}
		if !called {
			t.Error("the call did not come in between")
		}
	})
}

// TestSignTakesTheIssuersThatVerifyTakes, and fills in the policy's own.
func TestSignTakesTheIssuersThatVerifyTakes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewSigning(t, 1, func(cfg *keyring.Config) { cfg.Tokens.AcceptIssuers = []string{"https://other.example", ""} })
		leader := keyringtest.Ready(t, c)
		for given, want := range map[string]string{"": keyringtest.TokenIssuer, keyringtest.TokenIssuer: keyringtest.TokenIssuer, "https://other.example": "https://other.example"} {
			claims := map[string]any{}
			if given != "" {
				claims["iss"] = given
			}
			var got struct{ Iss string }
			if err := leader.Keyring.Verify(keyringtest.Sign(t, leader, claims), keyringtest.ForMe, &got); err != nil || got.Iss != want {
				t.Errorf("%q: %+v, %v", given, got, err)
			}
		}
		for _, iss := range []string{"", "https://third.example", "https://other.example/"} {
			if token, err := leader.Keyring.Sign(keyringtest.ClaimsForMe(), map[string]any{"iss": iss}); err == nil || !strings.Contains(err.Error(), "iss is none of") {
				t.Errorf("%q: %q, %v", iss, token, err)
			}
		}
	})
}
