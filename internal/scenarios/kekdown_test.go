package scenarios_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
)

// TestFollowerWhoseKEKIsDownIsNoHolder in a rotation: the others go on, it is named, holds
// nothing, starts again, and catches up when the KEK answers.
func TestFollowerWhoseKEKIsDownIsNoHolder(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func(*kektest.KMS){
		"fails": kektest.Outages["fails"], "hangs": kektest.Outages["hangs"],
		"wraps, and does not unwrap": func(k *kektest.KMS) { k.NoUnwrap = errBroken },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				keks := map[string]*kektest.KMS{"s1": kektest.New("k1"), "s2": kektest.New("k2"), "s3": kektest.New("k3")}
				c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Configure: func(s *keyringtest.Server, cfg *keyring.Config) {
					cfg.KEKs = []keyring.KEK{keks[string(s.ID)]}
				}})
				leader := keyringtest.Ready(t, c)
				keyringtest.AwaitHolders(leader.Keyring, leader.Keyring.Keys()[0].ID, 3)
				f := keyringtest.Follower(c)
				kek := keks[string(f.ID)]
				kek.Set(fail)
				key, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{})
				if err != nil {
					t.Fatal(err)
				}
				check := func(when string) {
					t.Helper()
					time.Sleep(10 * time.Minute) // virtual
					if keyringtest.Ring(f.FSM).Key(meta.KeyID(key.ID)).HeldBy(string(f.ID)) || f.Disk.Bytes(nks.FileName(key.ID)) != nil {
						t.Errorf("%s: it is a holder, or has a file", when)
					}
					if st, err := f.Keyring.Status(t.Context()); err != nil || !named(st, kek.Name) || st.Ready || len(st.Missing) == 0 {
						t.Errorf("%s: %v, %v", when, st.Problems, err)
					}
				}
				check("while it runs")
				c.Restart(f)
				check("restarted")
				kek.Set(kektest.Answers)
				keyringtest.AwaitHolders(f.Keyring, key.ID, 3)
				time.Sleep(time.Minute) // virtual
				if st, err := f.Keyring.Status(t.Context()); err != nil || !st.Ready || len(butNoBackup(st.Problems)) > 0 {
					t.Errorf("when it answers: %v, %v", st.Problems, err)
				}
			})
		})
	}
}

// TestRotationUnderAKEKThatDoesNotUnwrapLeavesNoOrphan, however often the leader tries.
func TestRotationUnderAKEKThatDoesNotUnwrapLeavesNoOrphan(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := kektest.New("a")
		l := newLone(t, a)
		sealed := l.seal("data")
		a.Set(func(k *kektest.KMS) { k.NoUnwrap = errBroken })
		for range 3 {
			if _, err := l.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); !errors.Is(err, errBroken) || !strings.Contains(err.Error(), "KEK a") {
				t.Errorf("rotate: %v", err)
			}
		}
		if st := l.status(); len(keyringtest.KeyFiles(l.Disk)) != 1 || !named(st, "a") {
			t.Errorf("%d files, %v", len(keyringtest.KeyFiles(l.Disk)), st.Problems)
		}
		a.Set(kektest.Answers)
		if _, err := l.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Errorf("right after it unwraps again: %v", err)
		}
		if st := l.status(); named(st, "a") {
			t.Errorf("it has just wrapped and unwrapped: %v", st.Problems)
		}
		l.opens(sealed)
		if st := l.status(); len(butNoBackup(st.Problems)) > 0 {
			t.Errorf("what is over is still a problem: %v", st.Problems)
		}
	})
}

// TestServerWhoseKEKIsGoneFetchesAllKeysAgain if its keystore is moved away, under any other KEK.
func TestServerWhoseKEKIsGoneFetchesAllKeysAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		keks := map[string]*kektest.KMS{"s1": kektest.New("k1"), "s2": kektest.New("k2"), "s3": kektest.New("k3")}
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Configure: func(s *keyringtest.Server, cfg *keyring.Config) {
			cfg.KEKs = []keyring.KEK{keks[string(s.ID)]}
		}})
		leader := keyringtest.Ready(t, c)
		sealed, err := leader.Keyring.Encrypt([]byte("data"), nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		f := keyringtest.Follower(c)
		keks[string(f.ID)] = kektest.New("new")
		f.Disk = keyringtest.NewDisk()
		c.Restart(f)
		time.Sleep(time.Minute) // virtual
		if got, err := f.Keyring.Decrypt(sealed, nil); err != nil || string(got) != "data" {
			t.Errorf("%q, %v", got, err)
		}
		if st, err := f.Keyring.Status(t.Context()); err != nil || !st.Ready || st.OnOldKEKs > 0 || len(st.Problems) != 1 || st.Problems[0].Kind != keyring.ProblemKeystore { // the disk is a new one
			t.Errorf("%v, %v", st.Problems, err)
		}
	})
}

// errBroken is a KMS that wraps, and can't open what it wrapped.
var errBroken = errors.New("permission denied")

// TestHangingKEKDoesNotKeepCloseWaiting and does not keep the server from its other work.
func TestHangingKEKDoesNotKeepCloseWaiting(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := kektest.New("a")
		l := newLone(t, a)
		l.seal("data")
		a.Set(kektest.Outages["hangs"])
		failed := make(chan error)
		go func() {
			_, err := l.Keyring.Rotate(t.Context(), keyring.RotateOptions{})
			failed <- err
		}()
		synctest.Wait() // it hangs
		began := time.Now()
		if err := l.Keyring.Close(); err != nil {
			t.Error(err)
		}
		if err := <-failed; !errors.Is(err, keyring.ErrClosed) {
			t.Errorf("rotate: %v", err)
		}
		if d := time.Since(began); d > time.Second {
			t.Errorf("Close took %v", d)
		}
	})
}

// TestKEKThatUnwrapsNoMoreStaysNamed: that it wraps is not enough.
func TestKEKThatUnwrapsNoMoreStaysNamed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, b := kektest.New("a"), kektest.New("b")
		l := newLone(t, a, b)
		l.seal("data")
		b.Set(func(k *kektest.KMS) { k.NoUnwrap = errBroken })
		l.restart(a, b)
		for range 2 {
			leaderOfLone(l)
			if st := l.status(); st.Ready || !named(st, "b") {
				t.Errorf("ready %v, %v", st.Ready, st.Problems)
			}
			if _, err := l.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
				t.Errorf("a opens it: %v", err)
			}
		}
	})
}

// TestOneBadFileDoesNotMarkItsKEKDown, and so keeps no other file closed: a KMS does not always
// say that a ciphertext is not its own.
func TestOneBadFileDoesNotMarkItsKEKDown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := kektest.New("a")
		l := newLone(t, kektest.Picky{KEK: a})
		l.seal("data")
		lost := l.Keyring.Keys()[0].ID
		if _, err := l.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		sealed := l.seal("data")
		l.Disk.Plant(nks.FileName(lost), 0o600, nil) // so that the directory is read again and again
		for i := range 40 {
			stray := kektest.NewVault(t, 7)
			stray.Name = "a"
			keyringtest.PlantKey(t, l.Disk, keyring.KeyID{0, byte(i)}, stray)
		}
		l.restart(kektest.Picky{KEK: a})
		l.opens(sealed)
		for range 60 {
			time.Sleep(time.Minute) // virtual
			if st := l.status(); !st.Ready || len(st.SetAside) != 1 {
				t.Fatalf("ready %v, set aside %v", st.Ready, st.SetAside)
			}
		}
	})
}

// TestCallThatIsGivenUpSaysNothingAboutItsKEK: it may be slow, and the caller in a hurry.
func TestCallThatIsGivenUpSaysNothingAboutItsKEK(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := kektest.New("a")
		l := newLone(t, a)
		l.seal("data")
		a.Set(kektest.Outages["hangs"])
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := l.Keyring.Rotate(ctx, keyring.RotateOptions{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("rotate: %v", err)
		}
		a.Set(kektest.Answers)
		if st := l.status(); named(st, "a") || !st.Ready {
			t.Errorf("ready %v, %v", st.Ready, st.Problems)
		}
	})
}

// TestDeadOldKEKKeepsNobodyFromBeingReady: after a recovery it may well be left in the
// configuration.
func TestDeadOldKEKKeepsNobodyFromBeingReady(t *testing.T) {
	t.Parallel()
	for name, fail := range kektest.Outages {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gone, escrow := kektest.New("gone"), kektest.New("escrow")
				l := newLone(t, gone, escrow)
				sealed := l.seal("data")
				gone.Set(fail)
				l.keks, l.old = []keyring.KEK{kektest.New("new")}, []keyring.KEK{gone, escrow}
				l.Cluster.Restart(l.Server)
				if !l.readyWithin(time.Minute) {
					t.Errorf("not ready: %v", l.status().Problems)
				}
				l.opens(sealed)
				if st := l.status(); !named(st, "gone") || st.OnOldKEKs != 1 {
					t.Errorf("%d on old KEKs, %v", st.OnOldKEKs, st.Problems)
				}
				if err := l.Keyring.Rewrap(t.Context()); err != nil || l.status().OnOldKEKs != 0 {
					t.Errorf("rewrap: %v", err)
				}
			})
		})
	}
}
