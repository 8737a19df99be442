package keyring_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/nks"
)

// TestFollowerWhoseKEKIsAwayIsNoHolder in a rotation: the others go on, it is named, holds
// nothing, starts again, and catches up when the KEK answers.
func TestFollowerWhoseKEKIsAwayIsNoHolder(t *testing.T) {
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
					if keyring.Ring(f.FSM).Key(key.ID).HeldBy(string(f.ID)) || f.Disk.Bytes(nks.FileName(key.ID)) != nil {
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
				if st, err := f.Keyring.Status(t.Context()); err != nil || !st.Ready || len(st.Problems) > 0 {
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
		if st := l.status(); len(st.Problems) > 0 {
			t.Errorf("what is over is still a problem: %v", st.Problems)
		}
	})
}

// TestServerWhoseKEKIsLostFetchesAllAnew if its keystore is moved away, under any other KEK.
func TestServerWhoseKEKIsLostFetchesAllAnew(t *testing.T) {
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
		if st, err := f.Keyring.Status(t.Context()); err != nil || !st.Ready || st.OnOldKEKs > 0 || len(st.Problems) > 0 {
			t.Errorf("%v, %v", st.Problems, err)
		}
	})
}
