package scenarios_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/nks"
)

// lone is a cluster of one whose KEKs can be changed between its starts.
type lone struct {
	*keyringtest.Cluster
	*keyringtest.Server
	t    *testing.T
	keks []keyring.KEK
	old  []keyring.KEK

	every time.Duration // RotationPolicy.Every
}

func newLone(t *testing.T, keks ...keyring.KEK) *lone {
	l := &lone{t: t, keks: keks}
	l.Cluster = keyringtest.NewCluster(t, keyringtest.Options{Configure: func(s *keyringtest.Server, cfg *keyring.Config) {
		cfg.KEKs, cfg.OldKEKs, cfg.Rotation.Every = l.keks, l.old, l.every
	}})
	l.Server = l.Servers[0]
	return l
}

// restart starts the server again, with these KEKs.
func (l *lone) restart(keks ...keyring.KEK) {
	l.t.Helper()
	l.keks = keks
	l.Cluster.Restart(l.Server)
}

func (l *lone) seal(data string) []byte {
	l.t.Helper()
	keyringtest.Ready(l.t, l.Cluster)
	b, err := l.Keyring.Encrypt([]byte(data), nil)
	if err != nil {
		l.t.Fatal(err)
	}
	return b
}

// opens waits until the server is ready and wants it to open the ciphertexts.
func (l *lone) opens(sealed ...[]byte) {
	l.t.Helper()
	keyringtest.Ready(l.t, l.Cluster)
	for i, c := range sealed {
		if _, err := l.Keyring.Decrypt(c, nil); err != nil {
			l.t.Errorf("ciphertext %d: %v", i, err)
		}
	}
}

func (l *lone) status() keyring.Status {
	l.t.Helper()
	st, err := l.Keyring.Status(l.t.Context())
	if err != nil {
		l.t.Fatal(err)
	}
	return st
}

// named reports whether Status names the KEK as one that does not do its work.
func named(st keyring.Status, kek string) bool {
	return slices.ContainsFunc(st.Problems, func(p keyring.Problem) bool {
		return strings.Contains(string(p.Kind), "KEK") && p.KEK == kek && p.Kind != keyring.ProblemInlineKEK
	})
}

// readyWithin reports whether the server is ready before d is over.
func (l *lone) readyWithin(d time.Duration) bool {
	ctx, cancel := context.WithTimeout(l.t.Context(), d)
	defer cancel()
	return l.Keyring.WaitReady(ctx) == nil
}

// leaderOfLone waits until it encrypts, ready or not.
func leaderOfLone(l *lone) {
	for range 1000 {
		if _, err := l.Keyring.Encrypt(nil, nil); err == nil {
			return
		}
		time.Sleep(100 * time.Millisecond) // virtual
	}
	l.t.Error("it never encrypts")
}

// TestServerStartsWithTheKEKsThatAnswer is the first half of what must hold when a KMS is away:
// the keys that another KEK opens are used, the other one is named, and tried again.
func TestServerStartsWithTheKEKsThatAnswer(t *testing.T) {
	t.Parallel()
	for name, fail := range kektest.Outages {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := kektest.New("a"), kektest.New("b")
				l := newLone(t, a, b)
				sealed := l.seal("data")
				b.Set(fail)
				began := time.Now()
				l.restart(a, b)
				if d := time.Since(began); d > time.Minute {
					t.Errorf("Open took %v", d)
				}
				if l.readyWithin(time.Minute) {
					t.Error("ready while a KEK does not answer")
				}
				if _, err := l.Keyring.Decrypt(sealed, nil); err != nil {
					t.Errorf("under the KEK that answers: %v", err)
				}
				if _, err := l.Keyring.Encrypt(nil, nil); err != nil {
					t.Errorf("under the KEK that answers: %v", err)
				}
				if st := l.status(); !named(st, "b") || named(st, "a") || st.Ready {
					t.Errorf("status: ready %v, %v", st.Ready, st.Problems)
				}
				b.Set(kektest.Answers)
				if !l.readyWithin(5 * time.Minute) {
					t.Errorf("not ready when all KEKs answer again: %v", l.status().Problems)
				}
				if st := l.status(); named(st, "b") {
					t.Errorf("it is still named: %v", st.Problems)
				}
			})
		})
	}
}

// TestKeysWaitForTheOnlyKEK is the second half: files that nothing opens for now stay as they
// are, and open when the KEK answers.
func TestKeysWaitForTheOnlyKEK(t *testing.T) {
	t.Parallel()
	for name, fail := range kektest.Outages {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := kektest.New("a")
				l := newLone(t, a)
				sealed := l.seal("data")
				for range 40 {
					if _, err := l.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
						t.Fatal(err)
					}
				}
				files, before := keyringtest.KeyFiles(l.Disk), a.Calls()
				a.Set(fail)
				began := time.Now()
				l.restart(a)
				if d := time.Since(began); d > time.Minute {
					t.Errorf("Open took %v", d)
				}
				if l.readyWithin(10 * time.Minute) {
					t.Error("ready without a key")
				}
				if _, err := l.Keyring.Decrypt(sealed, nil); !errors.Is(err, keyring.ErrKeyMissing) {
					t.Errorf("without the KEK: %v", err)
				}
				if st := l.status(); !named(st, "a") || len(st.Missing) != 41 || len(st.SetAside) > 0 {
					t.Errorf("status: %d missing, %v set aside, %v", len(st.Missing), st.SetAside, st.Problems)
				}
				if now := keyringtest.KeyFiles(l.Disk); fmt.Sprint(now) != fmt.Sprint(files) {
					t.Errorf("key files have changed while the KEK was away: %d, %d before", len(now), len(files))
				}
				if n := a.Calls() - before; n < 10 || n > 40 {
					t.Errorf("the KEK was called %d times in ten minutes", n)
				}
				a.Set(kektest.Answers)
				l.opens(sealed)
				if st := l.status(); len(st.Missing) > 0 || named(st, "a") {
					t.Errorf("status: %d missing, %v", len(st.Missing), st.Problems)
				}
			})
		})
	}
}

// TestRotationFailsCleanWhileAKEKIsDown: each KEK has to wrap a key, or the key is not held.
func TestRotationFailsCleanWhileAKEKIsDown(t *testing.T) {
	t.Parallel()
	for name, fail := range kektest.Outages {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := kektest.New("a"), kektest.New("b")
				l := newLone(t, a, b)
				sealed := l.seal("data")
				files := keyringtest.KeyFiles(l.Disk)
				b.Set(fail)
				for range 3 {
					began := time.Now()
					_, err := l.Keyring.Rotate(t.Context(), keyring.RotateOptions{})
					if err == nil || !strings.Contains(err.Error(), "KEK b") || time.Since(began) > time.Minute {
						t.Errorf("after %v: %v", time.Since(began), err)
					}
				}
				if now := keyringtest.KeyFiles(l.Disk); fmt.Sprint(now) != fmt.Sprint(files) || len(l.Keyring.Keys()) != 1 {
					t.Errorf("a failed rotation left %d files and %d keys", len(now), len(l.Keyring.Keys()))
				}
				if !named(l.status(), "b") {
					t.Errorf("status does not name it: %v", l.status().Problems)
				}
				if _, err := l.Keyring.Encrypt(nil, nil); err != nil {
					t.Errorf("under the old key: %v", err)
				}
				b.Set(kektest.Answers)
				l.opens(sealed)
				if _, err := l.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
					t.Errorf("when it answers again: %v", err)
				}
				synctest.Wait()
				if st := l.status(); len(butNoBackup(st.Problems)) > 0 {
					t.Errorf("what is over is still a problem: %v", st.Problems)
				}
			})
		})
	}
}

// TestFileUnderAnUnknownKEKIsLeftAlone, in a cluster whose other servers have the key: it may
// be the way back.
func TestFileUnderAnUnknownKEKIsLeftAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		keks := map[string]keyring.KEK{}
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Configure: func(s *keyringtest.Server, cfg *keyring.Config) {
			if k := keks[string(s.ID)]; k != nil {
				cfg.KEKs = []keyring.KEK{k}
			}
		}})
		leader := keyringtest.Ready(t, c)
		sealed, err := leader.Keyring.Encrypt([]byte("data"), nil)
		if err != nil {
			t.Fatal(err)
		}
		f := keyringtest.Follower(c)
		keyringtest.AwaitHolders(leader.Keyring, leader.Keyring.Keys()[0].ID, 3)
		files := keyringtest.KeyFiles(f.Disk)
		keks[string(f.ID)] = kektest.New("new")
		c.Restart(f)
		time.Sleep(10 * time.Minute)
		if now := keyringtest.KeyFiles(f.Disk); fmt.Sprint(now) != fmt.Sprint(files) || len(files) != 1 {
			t.Errorf("files were %v and are %v", files, now)
		}
		st, err := f.Keyring.Status(t.Context())
		if err != nil || !named(st, "inline") || len(st.SetAside) > 0 {
			t.Errorf("status: %v, %v", st.Problems, err)
		}
		if _, err := f.Keyring.Decrypt(sealed, nil); !errors.Is(err, keyring.ErrKeyMissing) {
			t.Errorf("decrypt: %v", err)
		}
		delete(keks, string(f.ID))
		c.Restart(f)
		keyringtest.Ready(t, c)
		if _, err := f.Keyring.Decrypt(sealed, nil); err != nil {
			t.Errorf("with the KEK back: %v", err)
		}
	})
}

func TestStrayFileUnderAnUnknownKEKKeepsNobodyFromBeingReady(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLone(t, kektest.New("a"))
		sealed := l.seal("data")
		stray := keyring.KeyID{1, 2, 3}
		keyringtest.PlantKey(t, l.Disk, stray, kektest.New("unknown"))
		file := l.Disk.Bytes(nks.FileName(stray))
		l.restart(l.keks...)
		if !l.readyWithin(time.Minute) {
			t.Errorf("not ready: %v", l.status().Problems)
		}
		l.opens(sealed)
		if st := l.status(); !named(st, "unknown") || !bytes.Equal(file, l.Disk.Bytes(nks.FileName(stray))) {
			t.Errorf("status: %v", st.Problems)
		}
	})
}

func TestOpenRefusesASetInWhichNothingUnwraps(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hosts := keyringtest.NewHosts(t, 1)
		h := hosts[0]
		h.FSM = keyring.NewFSM()
		h.Run(t, h.FSM)
		escrow, other := kektest.New("escrow"), kektest.New("other")
		for _, k := range []*kektest.KMS{escrow, other} {
			k.Set(func(k *kektest.KMS) { k.NoUnwrap = fmt.Errorf("no: %w", keyring.ErrWrapOnly) })
		}
		for name, set := range map[string][2][]keyring.KEK{
			"one":                     {{escrow}, nil},
			"two":                     {{escrow, other}, nil},
			"only an old one unwraps": {{escrow}, {keyring.InlineKEK()}},
		} {
			cfg := h.Config()
			cfg.KEKs, cfg.OldKEKs = set[0], set[1]
			if k, err := keyring.Open(h.OnDisk(t), cfg); err == nil {
				t.Errorf("%s: opened", name)
				k.Close()
			} else if !strings.Contains(err.Error(), "unwrap") {
				t.Errorf("%s: %v", name, err)
			}
		}
		cfg := h.Config() // which Open has given back
		cfg.KEKs = []keyring.KEK{escrow, keyring.InlineKEK()}
		var err error
		if h.Keyring, err = keyring.Open(h.OnDisk(t), cfg); err != nil {
			t.Fatal(err)
		}
		keyringtest.LeaderOf(t, hosts)
		if st, err := h.Keyring.Status(t.Context()); err != nil || named(st, "escrow") || !st.Ready {
			t.Errorf("with escrow beside another: %v, %v", st.Problems, err)
		}
	})
}

// TestEscrowBesideAnotherKEKIsNeverToBlame: it wraps, and what it answers to Unwrap says
// nothing about the file.
func TestEscrowBesideAnotherKEKIsNeverToBlame(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, escrow := kektest.New("a"), kektest.New("escrow")
		escrow.Set(func(k *kektest.KMS) { k.NoUnwrap = keyring.ErrWrapOnly })
		l := newLone(t, a, escrow)
		sealed := l.seal("data")

		a.Set(kektest.Outages["fails"])
		l.restart(a, escrow)
		if st := l.status(); !named(st, "a") || named(st, "escrow") {
			t.Errorf("while a is away: %v", st.Problems)
		}
		a.Set(kektest.Answers)
		l.opens(sealed)

		// A says that the file is not its own: another KEK may have had that name.
		unknown := &kektest.KMS{Name: "a", Inner: kektest.File(t, kektest.CountingKey())}
		keyringtest.PlantKey(t, l.Disk, keyring.KeyID{8}, unknown, kektest.New("escrow"))
		l.restart(a, escrow)
		if st := l.status(); len(st.SetAside) != 0 || !named(st, "a") || named(st, "escrow") {
			t.Errorf("a file that a KEK disowns: %v", st.Problems)
		}

		// What lies in escrow alone is kept for the day when escrow can open it.
		id := keyring.KeyID{9}
		keyringtest.PlantKey(t, l.Disk, id, kektest.New("escrow"))
		l.restart(a, escrow)
		if st := l.status(); len(st.SetAside) != 0 || l.Disk.Bytes(nks.FileName(id)) == nil {
			t.Errorf("a file that is in escrow alone: %v", st.Problems)
		}
	})
}

func TestEachOfTwoKEKsOpensAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, b := kektest.New("a"), kektest.New("b")
		l := newLone(t, a, b)
		sealed := l.seal("data")
		for _, one := range []*kektest.KMS{a, b} {
			l.restart(one)
			l.opens(sealed)
			if st := l.status(); len(st.SetAside) > 0 || len(st.Missing) > 0 {
				t.Errorf("%s alone: %v", one.Name, st.Problems)
			}
		}
		l.keks, l.old = []keyring.KEK{kektest.New("c")}, []keyring.KEK{a}
		l.Cluster.Restart(l.Server)
		l.opens(sealed)
	})
}

// TestOldKEKNeedNotWrap: it is there to open, and a KMS may have been told so.
func TestOldKEKNeedNotWrap(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		old := kektest.New("old")
		l := newLone(t, old)
		sealed := l.seal("data")
		old.Set(func(k *kektest.KMS) { k.NoWrap = errors.New("this key version may only decrypt") })
		l.keks, l.old = []keyring.KEK{kektest.New("new")}, []keyring.KEK{old}
		l.Cluster.Restart(l.Server)
		if !l.readyWithin(time.Minute) {
			t.Errorf("not ready: %v", l.status().Problems)
		}
		l.opens(sealed)
		old.Set(kektest.Outages["fails"])
		l.Cluster.Restart(l.Server)
		if st := l.status(); st.Ready || !named(st, "old") {
			t.Errorf("while the old KEK is away: %v", st.Problems)
		}
	})
}
