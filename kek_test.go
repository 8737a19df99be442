package keyring_test

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
	"example.com/keyring/internal/keystore/keystoretest"
	"example.com/keyring/internal/nks"
	"filippo.io/age"
)

// kms is a KEK that a test can make fail, hang, or only wrap.
type kms = kektest.KMS

func newKMS(id string) *kms { return kektest.New(id) }

var errAway = kektest.ErrDown

// away are the ways in which a KEK does not answer.
var away = kektest.Outages

// answers makes it answer again.
var answers = kektest.Answers

func countingKey() []byte { return kektest.CountingKey() }

func fileKEK(t testing.TB, content []byte) keyring.KEK { return kektest.File(t, content) }

func ageIdentity(t testing.TB) *age.X25519Identity { return kektest.Identity(t) }

func ageKEK(t testing.TB, to *age.X25519Identity, with ...age.Identity) keyring.KEK {
	return kektest.Age(t, to, with...)
}

func passphraseKEK(t testing.TB, passphrase string) keyring.KEK {
	return kektest.Passphrase(t, passphrase)
}

// lone is a cluster of one whose KEKs can be changed between its starts.
type lone struct {
	*keyringtest.Cluster
	*keyringtest.Server
	t    *testing.T
	keks []keyring.KEK
	old  []keyring.KEK
}

func newLone(t *testing.T, keks ...keyring.KEK) *lone {
	l := &lone{t: t, keks: keks}
	l.Cluster = newCluster(t, keyringtest.Options{Configure: func(s *keyringtest.Server, cfg *keyring.Config) {
		cfg.KEKs, cfg.OldKEKs = l.keks, l.old
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
	ready(l.t, l.Cluster)
	b, err := l.Keyring.Encrypt([]byte(data), nil)
	if err != nil {
		l.t.Fatal(err)
	}
	return b
}

// opens waits until the server is ready and wants it to open the ciphertexts.
func (l *lone) opens(sealed ...[]byte) {
	l.t.Helper()
	ready(l.t, l.Cluster)
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

// named reports whether Status names the KEK as one that does not answer.
func named(st keyring.Status, kek string) bool {
	return slices.ContainsFunc(st.Problems, func(p keyring.Problem) bool {
		return p.Kind == keyring.ProblemKEKAway && p.KEK == kek
	})
}

// readyWithin reports whether the server is ready before d is over.
func (l *lone) readyWithin(d time.Duration) bool {
	ctx, cancel := context.WithTimeout(l.t.Context(), d)
	defer cancel()
	return l.Keyring.WaitReady(ctx) == nil
}

// keyFiles returns the content of the key files on a disk, and of those set aside.
func keyFiles(d *keyringtest.Disk) map[string]string {
	files := map[string]string{}
	for _, name := range d.Names() {
		if strings.Contains(name, ".nks.json") {
			files[name] = string(d.Bytes(name))
		}
	}
	return files
}

// namedVault is a KMS by that name with a key of its own: two of them are told apart by nothing but
// what they open.
func namedVault(t testing.TB, key byte) *kms {
	k := newKMS("vault")
	k.Inner = fileKEK(t, bytes.Repeat([]byte{key}, 32))
	return k
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
	for name, fail := range away {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := newKMS("a"), newKMS("b")
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
				b.Set(answers)
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
	for name, fail := range away {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newKMS("a")
				l := newLone(t, a)
				sealed := l.seal("data")
				for range 40 {
					if _, err := l.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
						t.Fatal(err)
					}
				}
				files, before := keyFiles(l.Disk), a.Calls()
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
				if now := keyFiles(l.Disk); fmt.Sprint(now) != fmt.Sprint(files) {
					t.Errorf("key files have changed while the KEK was away: %d, %d before", len(now), len(files))
				}
				if n := a.Calls() - before; n < 10 || n > 40 {
					t.Errorf("the KEK was called %d times in ten minutes", n)
				}
				a.Set(answers)
				l.opens(sealed)
				if st := l.status(); len(st.Missing) > 0 || named(st, "a") {
					t.Errorf("status: %d missing, %v", len(st.Missing), st.Problems)
				}
			})
		})
	}
}

// TestRotationFailsCleanWhileAKEKIsAway: each KEK has to wrap a key, or the key is not held.
func TestRotationFailsCleanWhileAKEKIsAway(t *testing.T) {
	t.Parallel()
	for name, fail := range away {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := newKMS("a"), newKMS("b")
				l := newLone(t, a, b)
				sealed := l.seal("data")
				files := keyFiles(l.Disk)
				b.Set(fail)
				for range 3 {
					began := time.Now()
					_, err := l.Keyring.Rotate(t.Context(), keyring.RotateOptions{})
					if err == nil || !strings.Contains(err.Error(), "KEK b") || time.Since(began) > time.Minute {
						t.Errorf("after %v: %v", time.Since(began), err)
					}
				}
				if now := keyFiles(l.Disk); fmt.Sprint(now) != fmt.Sprint(files) || len(l.Keyring.Keys()) != 1 {
					t.Errorf("a failed rotation left %d files and %d keys", len(now), len(l.Keyring.Keys()))
				}
				if !named(l.status(), "b") {
					t.Errorf("status does not name it: %v", l.status().Problems)
				}
				if _, err := l.Keyring.Encrypt(nil, nil); err != nil {
					t.Errorf("under the old key: %v", err)
				}
				b.Set(answers)
				l.opens(sealed)
				if _, err := l.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
					t.Errorf("when it answers again: %v", err)
				}
				synctest.Wait()
				if st := l.status(); len(st.Problems) > 0 {
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
		c := newCluster(t, keyringtest.Options{Servers: 3, Configure: func(s *keyringtest.Server, cfg *keyring.Config) {
			if k := keks[string(s.ID)]; k != nil {
				cfg.KEKs = []keyring.KEK{k}
			}
		}})
		leader := ready(t, c)
		sealed, err := leader.Keyring.Encrypt([]byte("data"), nil)
		if err != nil {
			t.Fatal(err)
		}
		f := follower(c)
		keyring.AwaitHolders(leader.Keyring, leader.Keyring.Keys()[0].ID, 3)
		files := keyFiles(f.Disk)
		keks[string(f.ID)] = newKMS("new")
		c.Restart(f)
		time.Sleep(10 * time.Minute)
		if now := keyFiles(f.Disk); fmt.Sprint(now) != fmt.Sprint(files) || len(files) != 1 {
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
		ready(t, c)
		if _, err := f.Keyring.Decrypt(sealed, nil); err != nil {
			t.Errorf("with the KEK back: %v", err)
		}
	})
}

// plantKey puts the file of a new key on a disk, wrapped under KEKs.
func plantKey(t testing.TB, d *keyringtest.Disk, id keyring.KeyID, keks ...keyring.KEK) {
	t.Helper()
	keystoretest.Plant(t, d, id, keks...)
}

// newKeyFile makes a key and its file.
func newKeyFile(t testing.TB, id keyring.KeyID, keks ...keyring.KEK) ([]byte, *nks.Material) {
	t.Helper()
	return keystoretest.KeyFile(t, id, keks...)
}

// errBroken is a KMS that wraps, and can't open what it wrapped.
var errBroken = errors.New("permission denied")

func TestStrayFileUnderAnUnknownKEKKeepsNobodyFromBeingReady(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLone(t, newKMS("a"))
		sealed := l.seal("data")
		stray := keyring.KeyID{1, 2, 3}
		plantKey(t, l.Disk, stray, newKMS("stranger's"))
		file := l.Disk.Bytes(nks.FileName(stray))
		l.restart(l.keks...)
		if !l.readyWithin(time.Minute) {
			t.Errorf("not ready: %v", l.status().Problems)
		}
		l.opens(sealed)
		if st := l.status(); !named(st, "stranger's") || !bytes.Equal(file, l.Disk.Bytes(nks.FileName(stray))) {
			t.Errorf("status: %v", st.Problems)
		}
	})
}

func TestOpenRefusesASetInWhichNothingUnwraps(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hosts := newHosts(t, 1)
		h := hosts[0]
		h.fsm = keyring.NewFSM()
		h.run(t, h.fsm)
		escrow, other := newKMS("escrow"), newKMS("other")
		for _, k := range []*kms{escrow, other} {
			k.Set(func(k *kms) { k.NoUnwrap = fmt.Errorf("no: %w", keyring.ErrWrapOnly) })
		}
		for name, set := range map[string][2][]keyring.KEK{
			"one":                     {{escrow}, nil},
			"two":                     {{escrow, other}, nil},
			"only an old one unwraps": {{escrow}, {keyring.InlineKEK()}},
		} {
			cfg := h.config()
			cfg.KEKs, cfg.OldKEKs = set[0], set[1]
			if k, err := keyring.Open(h.onDisk(t), cfg); err == nil {
				t.Errorf("%s: opened", name)
				k.Close()
			} else if !strings.Contains(err.Error(), "unwrap") {
				t.Errorf("%s: %v", name, err)
			}
		}
		cfg := h.config() // which Open has given back
		cfg.KEKs = []keyring.KEK{escrow, keyring.InlineKEK()}
		var err error
		if h.keyring, err = keyring.Open(h.onDisk(t), cfg); err != nil {
			t.Fatal(err)
		}
		leaderOf(t, hosts)
		if st, err := h.keyring.Status(t.Context()); err != nil || named(st, "escrow") || !st.Ready {
			t.Errorf("with escrow beside another: %v, %v", st.Problems, err)
		}
	})
}

// TestEscrowBesideAnotherKEKIsNeverToBlame: it wraps, and what it answers to Unwrap says
// nothing about the file.
func TestEscrowBesideAnotherKEKIsNeverToBlame(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, escrow := newKMS("a"), newKMS("escrow")
		escrow.Set(func(k *kms) { k.NoUnwrap = keyring.ErrWrapOnly })
		l := newLone(t, a, escrow)
		sealed := l.seal("data")

		a.Set(away["fails"])
		l.restart(a, escrow)
		if st := l.status(); !named(st, "a") || named(st, "escrow") {
			t.Errorf("while a is away: %v", st.Problems)
		}
		a.Set(answers)
		l.opens(sealed)

		// A says that the file is not its own: another KEK may have had that name.
		stranger := &kms{Name: "a", Inner: fileKEK(t, countingKey())}
		plantKey(t, l.Disk, keyring.KeyID{8}, stranger, newKMS("escrow"))
		l.restart(a, escrow)
		if st := l.status(); len(st.SetAside) != 0 || !named(st, "a") || named(st, "escrow") {
			t.Errorf("a file that a KEK disowns: %v", st.Problems)
		}

		// What lies in escrow alone is kept for the day when escrow can open it.
		id := keyring.KeyID{9}
		plantKey(t, l.Disk, id, newKMS("escrow"))
		l.restart(a, escrow)
		if st := l.status(); len(st.SetAside) != 0 || l.Disk.Bytes(nks.FileName(id)) == nil {
			t.Errorf("a file that is in escrow alone: %v", st.Problems)
		}
	})
}

func TestEachOfTwoKEKsOpensAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, b := newKMS("a"), newKMS("b")
		l := newLone(t, a, b)
		sealed := l.seal("data")
		for _, one := range []*kms{a, b} {
			l.restart(one)
			l.opens(sealed)
			if st := l.status(); len(st.SetAside) > 0 || len(st.Missing) > 0 {
				t.Errorf("%s alone: %v", one.Name, st.Problems)
			}
		}
		l.keks, l.old = []keyring.KEK{newKMS("c")}, []keyring.KEK{a}
		l.Cluster.Restart(l.Server)
		l.opens(sealed)
	})
}

// TestOldKEKNeedNotWrap: it is there to open, and a KMS may have been told so.
func TestOldKEKNeedNotWrap(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		old := newKMS("old")
		l := newLone(t, old)
		sealed := l.seal("data")
		old.Set(func(k *kms) { k.NoWrap = errors.New("this key version may only decrypt") })
		l.keks, l.old = []keyring.KEK{newKMS("new")}, []keyring.KEK{old}
		l.Cluster.Restart(l.Server)
		if !l.readyWithin(time.Minute) {
			t.Errorf("not ready: %v", l.status().Problems)
		}
		l.opens(sealed)
		old.Set(away["fails"])
		l.Cluster.Restart(l.Server)
		if st := l.status(); st.Ready || !named(st, "old") {
			t.Errorf("while the old KEK is away: %v", st.Problems)
		}
	})
}

// TestHangingKEKDoesNotKeepCloseWaiting and does not keep the server from its other work.
func TestHangingKEKDoesNotKeepCloseWaiting(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newKMS("a")
		l := newLone(t, a)
		l.seal("data")
		a.Set(away["hangs"])
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

// TestKEKsPrintTheirIDs, and no passphrase, identity or cipher.
func TestKEKsPrintTheirIDs(t *testing.T) {
	identity := ageIdentity(t)
	secrets := [][]byte{[]byte("correct horse battery"), []byte(identity.String())}
	passphrase := passphraseKEK(t, string(secrets[0]))
	if _, err := passphrase.Wrap(t.Context(), nil, nil); err != nil { // so that it has a cipher
		t.Fatal(err)
	}
	for name, kek := range map[string]keyring.KEK{"passphrase": passphrase, "age": ageKEK(t, identity, identity)} {
		for _, v := range []any{kek, &kek, []keyring.KEK{kek}, struct{ k keyring.KEK }{kek}} {
			text := printed(v)
			if n := leaks([]byte(text), secrets); n > 0 || strings.Contains(text, decimals(secrets[0][:8])[0]) {
				t.Errorf("%s prints %d secrets: %s", name, n, text)
			}
		}
		if !strings.Contains(printed(kek), "KEK "+kek.ID()) {
			t.Errorf("%s prints %s", name, printed(kek))
		}
	}
}
