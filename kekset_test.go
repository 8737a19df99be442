package keyring_test

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/nks"
)

// namedVault is a KMS by that name with a key of its own: two of them are told apart by nothing but
// what they open.
func namedVault(t testing.TB, key byte) *kms {
	k := newKMS("vault")
	k.Inner = fileKEK(t, bytes.Repeat([]byte{key}, 32))
	return k
}

// TestKEKThatUnwrapsNoMoreStaysNamed: that it wraps is not enough.
func TestKEKThatUnwrapsNoMoreStaysNamed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, b := newKMS("a"), newKMS("b")
		l := newLone(t, a, b)
		l.seal("data")
		b.Set(func(k *kms) { k.NoUnwrap = errBroken })
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

// TestOneBadFileDoesNotMakeItsKEKAway, and so keeps no other file closed: a KMS does not always
// say that a ciphertext is not its own.
func TestOneBadFileDoesNotMakeItsKEKAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newKMS("a")
		l := newLone(t, kektest.Picky{KEK: a})
		l.seal("data")
		lost := l.Keyring.Keys()[0].ID
		if _, err := l.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		sealed := l.seal("data")
		l.Disk.Plant(nks.FileName(lost), 0o600, nil) // so that the directory is read again and again
		for i := range 40 {
			stray := namedVault(t, 7)
			stray.Name = "a"
			plantKey(t, l.Disk, keyring.KeyID{0, byte(i)}, stray)
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
		a := newKMS("a")
		l := newLone(t, a)
		l.seal("data")
		a.Set(away["hangs"])
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := l.Keyring.Rotate(ctx, keyring.RotateOptions{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("rotate: %v", err)
		}
		a.Set(answers)
		if st := l.status(); named(st, "a") || !st.Ready {
			t.Errorf("ready %v, %v", st.Ready, st.Problems)
		}
	})
}

// TestDeadOldKEKKeepsNobodyFromBeingReady: after a recovery it may well be left in the
// configuration.
func TestDeadOldKEKKeepsNobodyFromBeingReady(t *testing.T) {
	t.Parallel()
	for name, fail := range away {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gone, escrow := newKMS("gone"), newKMS("escrow")
				l := newLone(t, gone, escrow)
				sealed := l.seal("data")
				gone.Set(fail)
				l.keks, l.old = []keyring.KEK{newKMS("new")}, []keyring.KEK{gone, escrow}
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
