package keyring_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/nks"
)

// namedVault is a KMS by that name with a key of its own: two of them are told apart by nothing but
// what they open.
func namedVault(t testing.TB, key byte) *kms {
	k := newKMS("vault")
	k.Inner = fileKEK(t, bytes.Repeat([]byte{key}, 32))
	return k
}

// TestOldKEKSilencesNoPresentOneOfItsName: a KMS was lost and built anew under the same name.
func TestOldKEKSilencesNoPresentOneOfItsName(t *testing.T) {
	disk, present, gone := keyringtest.NewDisk(), namedVault(t, 1), namedVault(t, 2)
	gone.Set(away["fails"])
	plantKey(t, disk, keyring.KeyID{1}, present)
	if s := openStore(t, disk, []keyring.KEK{present}, []keyring.KEK{gone}); !s.Confirm(keyring.KeyID{1}) || s.OnOldKEKs() != 0 {
		t.Error("the file under the present KEK does not open")
	}
}

// TestFileThatNoPresentKEKOpensIsOnOldKEKs, also if the names in it are those of the present
// ones: the KMS was lost and built anew under its name, and escrow opens the files.
func TestFileThatNoPresentKEKOpensIsOnOldKEKs(t *testing.T) {
	identity := ageIdentity(t)
	lost, anew, escrow := namedVault(t, 1), namedVault(t, 2), ageKEK(t, identity)
	for name, keks := range map[string][2]keyring.KEK{"KMS first": {anew, escrow}, "escrow first": {escrow, anew}} {
		disk := keyringtest.NewDisk()
		old := []keyring.KEK{lost, escrow}
		if keks[0] == escrow {
			old = []keyring.KEK{escrow, lost}
		}
		plantKey(t, disk, keyring.KeyID{1}, old...)
		s := openStore(t, disk, keks[:], []keyring.KEK{ageKEK(t, identity, identity)})
		if !s.Confirm(keyring.KeyID{1}) || s.OnOldKEKs() != 1 {
			t.Errorf("%s: %d on old KEKs", name, s.OnOldKEKs())
		}
		if err := s.Rewrap(t.Context()); err != nil || s.OnOldKEKs() != 0 {
			t.Errorf("%s: rewrap: %v, %d left", name, err, s.OnOldKEKs())
		}
		s.Close()
		if s = openStore(t, disk, keks[:], []keyring.KEK{ageKEK(t, identity, identity)}); s.OnOldKEKs() != 0 {
			t.Errorf("%s: %d on old KEKs after all were rewrapped", name, s.OnOldKEKs())
		}
		s.Close()
		if s = openStore(t, disk, keks[:], nil); !s.Confirm(keyring.KeyID{1}) || s.OnOldKEKs() != 0 {
			t.Errorf("%s: it does not open without the identity", name)
		}
		s.Close()
	}
}

// TestFileThatAPresentKEKDoesNotOpenIsRewrapped: another one opens it, which may be the next to go.
func TestFileThatAPresentKEKDoesNotOpenIsRewrapped(t *testing.T) {
	a, lost, anew := newKMS("a"), namedVault(t, 1), namedVault(t, 2)
	for name, c := range map[string]struct{ were, keks, old []keyring.KEK }{
		"one was exchanged":                             {[]keyring.KEK{a, newKMS("other")}, []keyring.KEK{a, anew}, nil},
		"one was added":                                 {[]keyring.KEK{a}, []keyring.KEK{a, anew}, nil},
		"it disowns the file":                           {[]keyring.KEK{lost, a}, []keyring.KEK{anew, a}, nil},
		"it does not say that":                          {[]keyring.KEK{lost, a}, []keyring.KEK{kektest.Picky{KEK: anew}, a}, nil},
		"the old one of its name opens":                 {[]keyring.KEK{lost, a}, []keyring.KEK{anew, a}, []keyring.KEK{lost}},
		"it was not asked, but an old one has its name": {[]keyring.KEK{a, lost}, []keyring.KEK{a, anew}, []keyring.KEK{lost}},
	} {
		t.Run(name, func(t *testing.T) {
			disk := keyringtest.NewDisk()
			plantKey(t, disk, keyring.KeyID{1}, c.were...)
			s := openStore(t, disk, c.keks, c.old)
			if !s.Confirm(keyring.KeyID{1}) || s.OnOldKEKs() != 1 {
				t.Errorf("%d to rewrap", s.OnOldKEKs())
			}
			if err := s.Rewrap(t.Context()); err != nil || s.OnOldKEKs() != 0 {
				t.Errorf("%v, %d left", err, s.OnOldKEKs())
			}
			s.Close()
			if s = openStore(t, disk, []keyring.KEK{anew}, nil); !s.Confirm(keyring.KeyID{1}) || s.OnOldKEKs() != 1 {
				t.Errorf("%d to rewrap off what is no KEK any more", s.OnOldKEKs())
			}
			s.Close()
			if s = openStore(t, disk, c.keks, c.old); s.OnOldKEKs() != 0 {
				t.Errorf("%d to rewrap after it was done", s.OnOldKEKs())
			}
		})
	}
}

// TestFileIsNotToBeRewrappedBecauseItsKEKIsAway: there is no reason to think so.
func TestFileIsNotToBeRewrappedBecauseItsKEKIsAway(t *testing.T) {
	disk, a, b := keyringtest.NewDisk(), newKMS("a"), newKMS("b")
	plantKey(t, disk, keyring.KeyID{1}, a, b)
	a.Set(away["fails"])
	if s := openStore(t, disk, []keyring.KEK{a, b}, nil); !s.Confirm(keyring.KeyID{1}) || s.OnOldKEKs() != 0 {
		t.Errorf("%d on old KEKs", s.OnOldKEKs())
	}
}

// TestFileWithAWayBackIsNotSetAside: one entry opens to nonsense, and there is another.
func TestFileWithAWayBackIsNotSetAside(t *testing.T) {
	local := fileKEK(t, countingKey())
	for name, other := range map[string]*kms{"not configured": newKMS("b"), "away": newKMS("a")} {
		disk := keyringtest.NewDisk()
		plantKey(t, disk, keyring.KeyID{1}, other)
		file, err := nks.DecodeFile(disk.Bytes(nks.FileName(keyring.KeyID{1})))
		if err != nil {
			t.Fatal(err)
		}
		nonsense, err := local.Wrap(t.Context(), []byte("nonsense"), file.AAD())
		if err != nil {
			t.Fatal(err)
		}
		file.Wrapped = append(file.Wrapped, nks.Wrapped{KEK: local.ID(), Ciphertext: nonsense})
		b, err := file.Encode()
		if err != nil {
			t.Fatal(err)
		}
		disk.Plant(nks.FileName(keyring.KeyID{1}), 0o600, b)
		a := newKMS("a")
		a.Set(away["fails"])
		if s := openStore(t, disk, []keyring.KEK{a, local}, nil); len(s.SetAside()) > 0 || s.OnOldKEKs() != 1 {
			t.Errorf("%s: set aside %v, %d on old KEKs", name, s.SetAside(), s.OnOldKEKs())
		}
	}
}

// TestWrongKEKThatAuthenticatesNothingSetsNothingAside: what it unwraps is no key, and that is
// its own fault.
func TestWrongKEKThatAuthenticatesNothingSetsNothingAside(t *testing.T) {
	disk := keyringtest.NewDisk()
	plantKey(t, disk, keyring.KeyID{1}, kektest.Garbler{Name: "kms", Key: 1})
	before := fmt.Sprint(keyFiles(disk))
	s := openStore(t, disk, []keyring.KEK{kektest.Garbler{Name: "kms", Key: 2}}, nil)
	if s.Confirm(keyring.KeyID{1}) || len(s.SetAside()) > 0 || s.OnOldKEKs() != 1 {
		t.Errorf("set aside %v, %d on old KEKs", s.SetAside(), s.OnOldKEKs())
	}
	s.Close()
	if fmt.Sprint(keyFiles(disk)) != before {
		t.Error("a file was touched")
	}
	if s = openStore(t, disk, []keyring.KEK{kektest.Garbler{Name: "kms", Key: 1}}, nil); !s.Confirm(keyring.KeyID{1}) {
		t.Error("it does not open with the right one")
	}
}

// TestKEKThatUnwrapsNoMoreStaysNamed: that it wraps is not enough.
func TestKEKThatUnwrapsNoMoreStaysNamed(t *testing.T) {
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

// slowKMS is a KMS that takes its time, and counts how many calls are on their way.
type slowKMS struct {
	keyring.KEK
	takes time.Duration

	mu      sync.Mutex // guards below
	err     error
	now     int
	most    int
	calls   int
	overdue bool // a call had no deadline, or one too far away
}

func (k *slowKMS) Wrap(ctx context.Context, plaintext, aad []byte) ([]byte, error) {
	if err := k.take(ctx); err != nil {
		return nil, err
	}
	return k.KEK.Wrap(ctx, plaintext, aad)
}

func (k *slowKMS) Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error) {
	if err := k.take(ctx); err != nil {
		return nil, err
	}
	return k.KEK.Unwrap(ctx, wrapped, aad)
}

// take is what a call takes, and what comes of it.
func (k *slowKMS) take(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.now++
	k.calls++
	k.most = max(k.most, k.now)
	if d, ok := ctx.Deadline(); !ok || time.Until(d) > 10*time.Second {
		k.overdue = true
	}
	err := k.err
	k.mu.Unlock()
	time.Sleep(k.takes) // virtual
	k.mu.Lock()
	k.now--
	return err
}

// atOnce is how many key files are worked on at a time.
const atOnce = 16

// TestManyFilesDoNotStampedeASlowKMS: they are read side by side, up to a bound, which is also
// reached, and each call has a deadline.
func TestManyFilesDoNotStampedeASlowKMS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const files, rounds = 1000, (1000 + atOnce - 1) / atOnce
		disk, escrow := keyringtest.NewDisk(), ageKEK(t, ageIdentity(t))
		for i := range files {
			plantKey(t, disk, keyring.KeyID{1, byte(i >> 8), byte(i)}, escrow, newKMS("a"))
		}
		k := &slowKMS{KEK: newKMS("a"), takes: 20 * time.Millisecond}
		began := time.Now()
		s := openStore(t, disk, []keyring.KEK{escrow, k}, nil)
		if d, want := time.Since(began), k.takes*(2+rounds); d != want { // the probe is wrapped and opened
			t.Errorf("%v, side by side it is %v", d, want)
		}
		if k.most != atOnce || k.calls != files+2 || k.overdue {
			t.Errorf("%d calls for %d files, %d at a time, overdue: %v", k.calls, files, k.most, k.overdue)
		}
		if !s.Confirm(keyring.KeyID{1, 0, 1}) || s.OnOldKEKs() > 0 || s.Away() != nil {
			t.Errorf("not held, or %d on old KEKs, or %v", s.OnOldKEKs(), s.Away())
		}
		s.Close()
	})
}

// TestArrivingKeysAreWrappedSideBySide, up to the same bound, after the first has shown that
// the KMS answers.
func TestArrivingKeysAreWrappedSideBySide(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &slowKMS{KEK: newKMS("a"), takes: 20 * time.Millisecond}
		s := openStore(t, keyringtest.NewDisk(), []keyring.KEK{k}, nil)
		keys := map[keyring.KeyID]*nks.Material{}
		for i := range 1 + 4*atOnce {
			m, err := nks.Generate("EdDSA")
			if err != nil {
				t.Fatal(err)
			}
			keys[keyring.KeyID{1, byte(i)}] = m
		}
		k.most = 0
		began := time.Now()
		errs := s.Put(t.Context(), keys)
		if d, want := time.Since(began), k.takes*2*(1+4); d != want { // wrapped, then opened
			t.Errorf("%v, side by side it is %v", d, want)
		}
		if k.most != atOnce {
			t.Errorf("%d at a time", k.most)
		}
		for id, err := range errs {
			if err != nil || !s.Confirm(id) {
				t.Errorf("%s: %v", id, err)
			}
		}
		s.Close()
	})
}

// TestKMSThatFailsSlowlyIsNotAskedForEachFile: one that answers the probe, or is old, and then
// takes seconds to fail. After a while it counts as away, unless it has answered, if only no.
func TestKMSThatFailsSlowlyIsNotAskedForEachFile(t *testing.T) {
	for err, most := range map[error]int{errAway: 80, keyring.ErrDecrypt: 1001} {
		synctest.Test(t, func(t *testing.T) {
			disk, gone := keyringtest.NewDisk(), newKMS("gone")
			for i := range 1000 {
				plantKey(t, disk, keyring.KeyID{1, byte(i >> 8), byte(i)}, gone)
			}
			plantKey(t, disk, keyring.KeyID{2}, gone, newKMS("a"))
			// As the KEKs of module kms do, it knows by itself that the probe is nothing of its own.
			k := &slowKMS{KEK: gone, takes: 3 * time.Second, err: err}
			began := time.Now()
			s := openStore(t, disk, []keyring.KEK{newKMS("a")}, []keyring.KEK{answersProbes{k}})
			if d := time.Since(began); d > time.Duration(most)*k.takes/16+k.takes || k.calls > most {
				t.Errorf("%v: %v, %d calls", err, d, k.calls)
			}
			if (s.Away() != nil) != (err == errAway) {
				t.Errorf("%v: away: %v", err, s.Away())
			}
			if !s.Confirm(keyring.KeyID{2}) || len(s.SetAside()) > 0 {
				t.Errorf("%v: what another KEK opens is not held", err)
			}
			s.Close()
		})
	}
}

// TestKMSThatHangsInARewrapIsNotAskedForEachFile: each call would take its whole time.
func TestKMSThatHangsInARewrapIsNotAskedForEachFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk, a, b := keyringtest.NewDisk(), newKMS("a"), newKMS("b")
		for i := range 200 {
			plantKey(t, disk, keyring.KeyID{byte(i)}, a)
		}
		s := openStore(t, disk, []keyring.KEK{b}, []keyring.KEK{a})
		b.Set(away["hangs"])
		before, began := b.Calls(), time.Now()
		if err := s.Rewrap(t.Context()); !errors.Is(err, context.DeadlineExceeded) || s.OnOldKEKs() != 200 || len(err.Error()) > 300 {
			t.Errorf("%v, %d left", err, s.OnOldKEKs())
		}
		if d, n := time.Since(began), b.Calls()-before; d > 11*time.Second || n != 1 {
			t.Errorf("%v, %d calls", d, n)
		}
		b.Set(answers)
		if err := s.Rewrap(t.Context()); err != nil || s.OnOldKEKs() != 0 {
			t.Errorf("when it answers again: %v, %d left", err, s.OnOldKEKs())
		}
		s.Close()
	})
}

// answersProbes is a KEK that knows by their length what it has not wrapped.
type answersProbes struct{ keyring.KEK }

func (k answersProbes) Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error) {
	if len(wrapped) < 32 {
		return nil, keyring.ErrDecrypt
	}
	return k.KEK.Unwrap(ctx, wrapped, aad)
}

// TestOneBadFileDoesNotMakeItsKEKAway, and so keeps no other file closed: a KMS does not always
// say that a ciphertext is not its own.
func TestOneBadFileDoesNotMakeItsKEKAway(t *testing.T) {
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

// TestKEKThatFailsNowAndThenIsNotAway: between two failures it opens files.
func TestKEKThatFailsNowAndThenIsNotAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk, a, stray := keyringtest.NewDisk(), newKMS("a"), namedVault(t, 7)
		stray.Name = "a"
		for i := range 250 {
			kek := a
			if i%10 == 0 {
				kek = stray
			}
			plantKey(t, disk, keyring.KeyID{byte(i)}, kek)
		}
		s := openStore(t, disk, []keyring.KEK{kektest.Picky{KEK: &slowKMS{KEK: a, takes: 3 * time.Second}}}, nil)
		if s.Away() != nil || s.OnOldKEKs() != 25 {
			t.Errorf("away: %v, %d files do not open", s.Away(), s.OnOldKEKs())
		}
		s.Close()
	})
}

// TestCallThatIsGivenUpSaysNothingAboutItsKEK: it may be slow, and the caller in a hurry.
func TestCallThatIsGivenUpSaysNothingAboutItsKEK(t *testing.T) {
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
