package scenarios_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/peer"
	"github.com/hashicorp/raft"
)

// TestAdoptTakesAnOrphanOfAnyServer: its file is planted on a follower, and after Adopt every
// server holds the key.
func TestAdoptTakesAnOrphanOfAnyServer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		id := keyring.KeyID{7}
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		keyringtest.Ready(t, c)
		f := keyringtest.Follower(c)
		keyringtest.PlantKey(t, f.Disk, id, keyring.InlineKEK())
		c.Restart(f)
		keyringtest.Ready(t, c)
		leader := c.Leader().Keyring
		if err := f.Keyring.Adopt(t.Context(), id); !errors.Is(err, keyring.ErrNotLeader) {
			t.Errorf("on a follower: %v", err)
		}
		if err := leader.Adopt(t.Context(), keyring.KeyID{8}); !errors.Is(err, keyring.ErrUnknownKey) {
			t.Errorf("a key that no server has: %v", err)
		}
		for range 2 {
			if err := leader.Adopt(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		keyringtest.AwaitKeys(t, c)
		keyringtest.AwaitHolders(c.Leader().Keyring, id, 3)
		k := keyringtest.Ring(c.Leader().FSM).Key(meta.KeyID(id))
		if k == nil || k.State != meta.StateInactive || k.DataOnly || len(k.Holders) != 3 {
			t.Errorf("adopted as %+v", k)
		}
	})
}

// TestAdoptAdmitsTokensOfAKeyAdoptedForDataOnly, which is what the leader adopts by itself.
func TestAdoptAdmitsTokensOfAKeyAdoptedForDataOnly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		id, disk := keyring.KeyID{7}, keyringtest.NewDisk()
		keyringtest.PlantKey(t, disk, id, keyring.InlineKEK())
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 1, Disk: func(_ raft.ServerID) *keyringtest.Disk { return disk }})
		keyringtest.Ready(t, c)
		ring := func() bool { return keyringtest.Ring(c.Leader().FSM).Key(meta.KeyID(id)).DataOnly }
		if !ring() {
			t.Error("the leader's own adoption admits tokens")
		}
		if err := c.Leader().Keyring.Adopt(t.Context(), id); err != nil || ring() {
			t.Errorf("after Adopt it is still for data only: %v", err)
		}
	})
}

// TestTokensVerifyFromTheirAdmissionOn, however long after the leader's own adoption that is.
func TestTokensVerifyFromTheirAdmissionOn(t *testing.T) {
	t.Parallel()
	for _, wait := range []time.Duration{time.Minute, 48 * time.Hour, 365 * 24 * time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			id, disk := keyring.KeyID{7}, keyringtest.NewDisk()
			keyringtest.PlantKey(t, disk, id, keyring.InlineKEK())
			first := func(raft.ServerID) *keyringtest.Disk {
				defer func() { disk = keyringtest.NewDisk() }()
				return disk
			}
			c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Pace: time.Hour, Disk: first})
			leader := keyringtest.Ready(t, c)
			time.Sleep(wait)
			if err := leader.Keyring.Adopt(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			verifies := func() bool { return strings.Contains(string(leader.Keyring.JWKS()), id.String()) }
			time.Sleep(24 * time.Hour)
			if !verifies() {
				t.Errorf("admitted %v after the adoption: a day later its tokens verify no longer", wait)
			}
			if time.Sleep(2 * time.Minute); verifies() {
				t.Errorf("admitted %v after the adoption: its tokens verify for longer than MaxTTL and the leeway", wait)
			}
		})
	}
}

// TestManyOrphansAreAdoptedInSeveralEntries: one log entry with all of them would be too long.
func TestManyOrphansAreAdoptedInSeveralEntries(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const orphans, most = 1200, 500
		disk := keyringtest.NewDisk()
		for i := range orphans {
			keyringtest.PlantKey(t, disk, keyring.KeyID{7, byte(i >> 8), byte(i)}, keyring.InlineKEK())
		}
		var mu sync.Mutex
		entries := map[uint64]int{} // adoptions by index
		c := keyringtest.NewCluster(t, keyringtest.Options{
			Servers: 1, Disk: func(raft.ServerID) *keyringtest.Disk { return disk },
			Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
				cfg.Audit = func(e keyring.Event) {
					mu.Lock()
					defer mu.Unlock()
					if e.Step == keyring.StepAdopted {
						entries[e.Index]++
					}
				}
			},
		})
		keyringtest.Ready(t, c)
		synctest.Wait()
		ring := keyringtest.Ring(c.Leader().FSM)
		for i := range orphans {
			if k := ring.Key(meta.KeyID{7, byte(i >> 8), byte(i)}); k == nil || k.State != meta.StateInactive || !k.DataOnly {
				t.Fatalf("%d is adopted as %+v", i, k)
			}
		}
		mu.Lock()
		defer mu.Unlock()
		all := 0
		for index, n := range entries {
			if all += n; n > most {
				t.Errorf("%d are adopted at %d", n, index)
			}
		}
		if all != orphans {
			t.Errorf("%d are adopted in %d entries", all, len(entries))
		}
	})
}

// altered is a snapshot in which a public key has taken the place of another: the checksum has no key.
func altered(t testing.TB, snap, was, is []byte) []byte {
	t.Helper()
	b := bytes.Replace(snap, base64.StdEncoding.AppendEncode(nil, was), base64.StdEncoding.AppendEncode(nil, is), 1)
	if bytes.Equal(b, snap) || len(b) != len(snap) {
		t.Fatal("the public key is not in the snapshot")
	}
	const head = 16 + 8 + sha256.Size
	sum := sha256.Sum256(b[head : head+binary.BigEndian.Uint64(b[16:])])
	copy(b[24:], sum[:])
	return b
}

// wantOtherPublicKey wants a server to have noticed that a key's public half is another's, and to have nothing to do
// with it.
func wantOtherPublicKey(t *testing.T, s *keyringtest.Server, id keyring.KeyID, pair keyringtest.Pair) {
	t.Helper()
	st, err := s.Keyring.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	of := func(p keyring.Problem) bool {
		return p.Kind == keyring.ProblemPublicKey && slices.Contains(p.Keys, id) && p.Advice != ""
	}
	if !slices.ContainsFunc(st.Problems, of) {
		t.Errorf("%s: problems %v", s.ID, st.Problems)
	}
	token := pair.Token(pair.Header(id.String()), fmt.Sprintf(`{"aud":"me","exp":%d}`, time.Now().Add(time.Hour).Unix()))
	if err := s.Keyring.Verify(token, keyring.Expect{Audience: []string{"me"}}); !errors.Is(err, keyring.ErrToken) {
		t.Errorf("%s: a token of who altered it: %v", s.ID, err)
	}
	w := httptest.NewRecorder()
	s.Keyring.WellKnown().ServeHTTP(w, httptest.NewRequest("GET", "/.well-known/jwks.json", nil))
	if body := w.Body.String(); w.Code != 200 || strings.Contains(body, id.String()) {
		t.Errorf("%s: JWKS: %d, %s", s.ID, w.Code, body)
	}
}

// TestPublicKeyThatIsNotItsMaterialsIsUsedByNobody who has the material, and nothing is signed that nobody could
// verify.
func TestPublicKeyThatIsNotItsMaterialsIsUsedByNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
			cfg.Tokens.Algorithm, cfg.Tokens.Issuer = "EdDSA", "https://keys.example"
		}})
		leader := keyringtest.Ready(t, c)
		claims := map[string]any{"aud": "me"}
		good, err := leader.Keyring.Sign(claims)
		if err != nil {
			t.Fatal(err)
		}
		active := keyringtest.Ring(leader.FSM).Active()
		mallory := keyringtest.NewPair(t, "EdDSA")
		keyringtest.TakeAlteredSnapshot(t, leader, func(b []byte) []byte { return altered(t, b, active.Public, mallory.Public(t)) })(leader)
		time.Sleep(10 * time.Minute)
		leader = keyringtest.Ready(t, c)
		for _, s := range c.Live() {
			wantOtherPublicKey(t, s, keyring.KeyID(active.ID), mallory)
			if err := s.Keyring.Verify(good, keyring.Expect{Audience: []string{"me"}}); !errors.Is(err, keyring.ErrToken) {
				t.Errorf("%s: its own token of before: %v", s.ID, err)
			}
		}
		if token, err := leader.Keyring.Sign(claims); !errors.Is(err, keyring.ErrCorrupt) || token != "" {
			t.Errorf("Sign: %q, %v", token, err)
		}
		if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		token, err := leader.Keyring.Sign(claims)
		if err != nil {
			t.Fatal(err)
		}
		if err := leader.Keyring.Verify(token, keyring.Expect{Audience: []string{"me"}}); err != nil {
			t.Error(err)
		}
	})
}

// TestAdoptBelievesNobodysPublicKey: the server that has the file says another one.
func TestAdoptBelievesNobodysPublicKey(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		id := keyring.KeyID{7}
		mallory := keyringtest.NewPair(t, "EdDSA")
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		keyringtest.Ready(t, c)
		f := keyringtest.Follower(c)
		keyringtest.PlantKey(t, f.Disk, id, keyring.InlineKEK())
		c.Restart(f)
		leader := keyringtest.Ready(t, c)
		if leader == f {
			t.Fatal("it leads")
		}
		hello, err := peer.Request{Hello: &peer.HelloRequest{}}.Encode()
		if err != nil {
			t.Fatal(err)
		}
		b, err := f.Keyring.ServePeer(t.Context(), leader.ID, hello)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := peer.DecodeAnswer[peer.HelloAnswer](b)
		if err != nil || len(answer.Orphans) != 1 {
			t.Fatal(answer, err)
		}
		answer.Orphans[0].Public = mallory.Public(t)
		lie, err := peer.Response{Hello: answer}.Encode()
		if err != nil {
			t.Fatal(err)
		}
		c.OnEvent(func(e keyringtest.Event) keyringtest.Reply {
			if e.Kind == "call" && strings.Contains(e.What, `"hello"`) && e.To == f.ID {
				return keyringtest.Reply{Data: lie}
			}
			return keyringtest.Reply{}
		})
		if err := leader.Keyring.Adopt(t.Context(), id); !errors.Is(err, keyring.ErrCorrupt) {
			t.Errorf("adopt: %v", err)
		}
		token := mallory.Token(mallory.Header(id.String()), fmt.Sprintf(`{"aud":"me","exp":%d}`, time.Now().Add(time.Hour).Unix()))
		for _, s := range c.Live() {
			if err := s.Keyring.Verify(token, keyring.Expect{Audience: []string{"me"}}); !errors.Is(err, keyring.ErrToken) {
				t.Errorf("%s: a token of who lied: %v", s.ID, err)
			}
		}
	})
}

// TestAnyOrphanIsAdoptedByItsID, also beyond those that one hello has, on the leader and on another server, and also if
// anybody may have made it.
func TestAnyOrphanIsAdoptedByItsID(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		servers  int
		unproven bool
	}{"on the leader": {servers: 1}, "on another server": {servers: 3}, "that anybody may have made": {servers: 3, unproven: true}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				own, identity := keyring.InlineKEK(), kektest.Identity(t)
				old := kektest.Age(t, identity, identity)
				c := keyringtest.NewCluster(t, keyringtest.Options{Servers: tt.servers, Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
					cfg.KEKs, cfg.OldKEKs = []keyring.KEK{own}, []keyring.KEK{old}
				}})
				has := keyringtest.Ready(t, c)
				if tt.servers > 1 {
					has = keyringtest.Follower(c)
				}
				for i := range peer.MaxOrphans {
					keyringtest.PlantKey(t, has.Disk, keyring.KeyID{0: 0xfe, 14: byte(i >> 8), 15: byte(i)}, own)
				}
				last, under := keyring.KeyID{0: 0xff}, own
				if tt.unproven {
					under = kektest.Age(t, identity)
				}
				keyringtest.PlantKey(t, has.Disk, last, under)
				c.Restart(has)
				leader := keyringtest.Ready(t, c)
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				if err := leader.Keyring.Adopt(ctx, last); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
