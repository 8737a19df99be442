package keyring_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/nks"
)

// countingKey is 0, 1, 2 to 31.
func countingKey() []byte {
	key := make([]byte, 32)
	for i := range key {
		key[i] = byte(i)
	}
	return key
}

func writeKEK(t testing.TB, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kek")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func fileKEK(t testing.TB, content []byte) keyring.KEK {
	t.Helper()
	k, err := keyring.FileKEK(writeKEK(t, content))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestKEKUnwrapsWhatItWrappedForThatAADOnly(t *testing.T) {
	another := fileKEK(t, bytes.Repeat([]byte{7}, 32))
	identity := ageIdentity(t)
	for name, kek := range map[string]keyring.KEK{
		"inline": keyring.InlineKEK(), "file": fileKEK(t, countingKey()),
		"age": ageKEK(t, identity, identity),
	} {
		for _, n := range []int{0, 1, 89, 1300} {
			plaintext, aad := bytes.Repeat([]byte{0xa5}, n), []byte("aad")
			wrapped, err := kek.Wrap(t.Context(), plaintext, aad)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := kek.Unwrap(t.Context(), wrapped, aad); err != nil || !bytes.Equal(got, plaintext) {
				t.Errorf("%s, %d bytes: %x, %v", name, n, got, err)
			}
			again, err := kek.Wrap(t.Context(), plaintext, aad)
			if err != nil || bytes.Equal(wrapped, again) {
				t.Errorf("%s, %d bytes: wrapped twice, it is the same (%v)", name, n, err)
			}
			refuse := func(what string, kek keyring.KEK, wrapped, aad []byte) {
				t.Helper()
				if got, err := kek.Unwrap(t.Context(), wrapped, aad); err != keyring.ErrDecrypt || got != nil {
					t.Fatalf("%s, %d bytes, %s: %x, %v", name, n, what, got, err)
				}
			}
			refuse("no AAD", kek, wrapped, nil)
			refuse("another AAD", kek, wrapped, []byte("aaD"))
			refuse("longer", kek, append(bytes.Clone(wrapped), 0), aad)
			refuse("nil", kek, nil, aad)
			if name == "file" {
				refuse("another key", another, wrapped, aad)
			}
			for i := range wrapped {
				refuse("truncated", kek, wrapped[:i], aad)
				if n < 100 {
					flipped := bytes.Clone(wrapped)
					flipped[i] ^= 1 << (i % 8)
					refuse("a bit flipped", kek, flipped, aad)
				}
			}
		}
	}
}

func TestFileKEKReadsThreeForms(t *testing.T) {
	key := countingKey()
	wrapped, err := fileKEK(t, key).Wrap(t.Context(), []byte("data"), nil)
	if err != nil {
		t.Fatal(err)
	}
	forms := map[string][]byte{
		"raw":                []byte(key),
		"base64":             []byte(base64.StdEncoding.EncodeToString(key)),
		"base64 and newline": []byte(base64.StdEncoding.EncodeToString(key) + "\n"),
		"hex":                []byte(hex.EncodeToString(key)),
		"hex and newline":    []byte(hex.EncodeToString(key) + "\n"),
		"upper-case hex":     []byte(strings.ToUpper(hex.EncodeToString(key))),
	}
	for name, content := range forms {
		kek := fileKEK(t, content)
		if kek.ID() != "file:74d8b8ddbeaf0f6d" { // HKDF-SHA256, made with another program
			t.Errorf("%s: the ID is %s", name, kek.ID())
		}
		if got, err := kek.Unwrap(t.Context(), wrapped, nil); err != nil || string(got) != "data" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	endsInNewline := append(bytes.Repeat([]byte{7}, 31), '\n')
	if fileKEK(t, endsInNewline).ID() == fileKEK(t, bytes.Repeat([]byte{7}, 32)).ID() {
		t.Error("a raw key that ends in a newline is read as another")
	}
}

func TestFileKEKRefusesOtherFilesWithoutTellingWhatIsInThem(t *testing.T) {
	secret := "Zm9vYmFyYmF6"
	h := hex.EncodeToString(countingKey())
	b := base64.StdEncoding.EncodeToString(countingKey())
	for name, content := range map[string]string{
		"empty":                  "",
		"a newline":              "\n",
		"31 bytes":               strings.Repeat("k", 31),
		"33 bytes":               strings.Repeat("k", 33),
		"32 bytes and newline":   strings.Repeat("k", 32) + "\n",
		"hex and two newlines":   h + "\n\n",
		"hex and CRLF":           h + "\r\n",
		"hex, one digit bad":     secret + h[len(secret):63] + "g",
		"hex, 66 digits":         h + "00",
		"base64, two newlines":   b + "\n\n",
		"base64 without its =":   b[:43],
		"base64, stray bits":     secret + b[len(secret):42] + "9=",
		"base64 of 33 bytes":     base64.StdEncoding.EncodeToString(append(countingKey(), 0)),
		"base64 of 31 bytes":     base64.StdEncoding.EncodeToString(countingKey()[:31]),
		"base64url":              strings.Repeat("_", 43) + "=",
		"a leading space":        " " + h,
		"a PEM file":             "-----BEGIN PRIVATE KEY-----\n" + secret,
		"a megabyte":             strings.Repeat(secret, 1<<17),
		"the key, and then some": h + "\n" + secret,
	} {
		path := writeKEK(t, []byte(content))
		kek, err := keyring.FileKEK(path)
		if err == nil || kek != nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		rest := strings.ReplaceAll(err.Error(), path, "")
		if rest == err.Error() || strings.Contains(rest, secret) || strings.Contains(rest, h[:8]) || strings.Contains(rest, "kkk") {
			t.Errorf("%s: the error is %q", name, err)
		}
	}
	if _, err := keyring.FileKEK(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if _, err := keyring.FileKEK(t.TempDir()); err == nil {
		t.Error("a directory is accepted")
	}
}

func TestFileKEKIDIsOfTheKeyAndNotTheKey(t *testing.T) {
	key := countingKey()
	a, b := fileKEK(t, key), fileKEK(t, key)
	if a.ID() != b.ID() {
		t.Errorf("one key, two IDs: %s, %s", a.ID(), b.ID())
	}
	key[31] ^= 1
	if fileKEK(t, key).ID() == a.ID() {
		t.Error("two keys, one ID")
	}
	for i := range len(key) - 2 {
		if strings.Contains(a.ID(), hex.EncodeToString(countingKey()[i:i+3])) {
			t.Errorf("the ID %s has bytes of the key in it", a.ID())
		}
	}
}

// kms is a KEK that a test can make fail, hang, or only wrap.
type kms struct {
	id    string
	inner keyring.KEK

	mu       sync.Mutex // guards below
	err      error      // of both calls
	noWrap   error      // of Wrap
	noUnwrap error      // of Unwrap
	hang     bool       // until the context ends
	calls    int
}

func newKMS(id string) *kms { return &kms{id: id, inner: keyring.InlineKEK()} }

func (k *kms) ID() string { return k.id }

// set changes how it behaves.
func (k *kms) set(change func(*kms)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	change(k)
}

func (k *kms) called() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.calls
}

func (k *kms) answer(ctx context.Context, own func(*kms) error) error {
	k.mu.Lock()
	k.calls++
	hang, err := k.hang, errors.Join(k.err, own(k))
	k.mu.Unlock()
	if hang {
		<-ctx.Done()
		return ctx.Err()
	}
	return err
}

func (k *kms) Wrap(ctx context.Context, plaintext, aad []byte) ([]byte, error) {
	if err := k.answer(ctx, func(k *kms) error { return k.noWrap }); err != nil {
		return nil, err
	}
	return k.inner.Wrap(ctx, plaintext, append([]byte(k.id), aad...))
}

func (k *kms) Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error) {
	if err := k.answer(ctx, func(k *kms) error { return k.noUnwrap }); err != nil {
		return nil, err
	}
	return k.inner.Unwrap(ctx, wrapped, append([]byte(k.id), aad...))
}

var errAway = errors.New("the KMS is away")

// away are the ways in which a KEK does not answer.
var away = map[string]func(*kms){
	"fails": func(k *kms) { k.err = errAway },
	"hangs": func(k *kms) { k.hang = true },
}

// answers makes it answer again.
func answers(k *kms) { k.err, k.hang, k.noWrap, k.noUnwrap = nil, false, nil, nil }

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

// restart starts the server anew with these KEKs.
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

// TestServerStartsWithTheKEKsThatAnswer is the first half of what must hold when a KMS is away:
// the keys that another KEK opens are used, the other one is named, and tried again.
func TestServerStartsWithTheKEKsThatAnswer(t *testing.T) {
	for name, fail := range away {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := newKMS("a"), newKMS("b")
				l := newLone(t, a, b)
				sealed := l.seal("data")
				b.set(fail)
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
				b.set(answers)
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
				files, before := keyFiles(l.Disk), a.called()
				a.set(fail)
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
				if n := a.called() - before; n < 10 || n > 40 {
					t.Errorf("the KEK was called %d times in ten minutes", n)
				}
				a.set(answers)
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
	for name, fail := range away {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := newKMS("a"), newKMS("b")
				l := newLone(t, a, b)
				sealed := l.seal("data")
				files := keyFiles(l.Disk)
				b.set(fail)
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
				b.set(answers)
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
	b, _ := newKeyFile(t, id, keks...)
	d.Plant(nks.FileName(id), 0o600, b)
}

// newKeyFile makes a key and its file.
func newKeyFile(t testing.TB, id keyring.KeyID, keks ...keyring.KEK) ([]byte, *nks.Material) {
	t.Helper()
	m, err := nks.Generate("EdDSA")
	if err != nil {
		t.Fatal(err)
	}
	file := nks.File{ID: id, Algorithm: "EdDSA", Check: m.Check(id, "EdDSA"), Created: time.Now().UTC()}
	for _, kek := range keks {
		wrapped, err := kek.Wrap(t.Context(), m.Encode(), file.AAD())
		if err != nil {
			t.Fatal(err)
		}
		file.Wrapped = append(file.Wrapped, nks.Wrapped{KEK: kek.ID(), Ciphertext: wrapped})
	}
	b, err := file.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b, m
}

func TestStrayFileUnderAnUnknownKEKKeepsNobodyFromBeingReady(t *testing.T) {
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
	synctest.Test(t, func(t *testing.T) {
		hosts := newHosts(t, 1)
		h := hosts[0]
		h.fsm = keyring.NewFSM()
		h.run(t, h.fsm)
		escrow, other := newKMS("escrow"), newKMS("other")
		for _, k := range []*kms{escrow, other} {
			k.set(func(k *kms) { k.noUnwrap = fmt.Errorf("no: %w", keyring.ErrWrapOnly) })
		}
		for name, set := range map[string][2][]keyring.KEK{
			"one":                     {{escrow}, nil},
			"two":                     {{escrow, other}, nil},
			"only an old one unwraps": {{escrow}, {keyring.InlineKEK()}},
		} {
			cfg := h.config(t)
			cfg.KEKs, cfg.OldKEKs = set[0], set[1]
			if k, err := keyring.Open(t.Context(), cfg); err == nil {
				t.Errorf("%s: opened", name)
				k.Close()
			} else if !strings.Contains(err.Error(), "unwrap") {
				t.Errorf("%s: %v", name, err)
			}
		}
		cfg := h.config(t) // which Open has given back
		cfg.KEKs = []keyring.KEK{escrow, keyring.InlineKEK()}
		var err error
		if h.keyring, err = keyring.Open(t.Context(), cfg); err != nil {
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
	synctest.Test(t, func(t *testing.T) {
		a, escrow := newKMS("a"), newKMS("escrow")
		escrow.set(func(k *kms) { k.noUnwrap = keyring.ErrWrapOnly })
		l := newLone(t, a, escrow)
		sealed := l.seal("data")

		a.set(away["fails"])
		l.restart(a, escrow)
		if st := l.status(); !named(st, "a") || named(st, "escrow") {
			t.Errorf("while a is away: %v", st.Problems)
		}
		a.set(answers)
		l.opens(sealed)

		// A says that the file is not its own: another KEK may have had that name.
		stranger := &kms{id: "a", inner: fileKEK(t, countingKey())}
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
	synctest.Test(t, func(t *testing.T) {
		a, b := newKMS("a"), newKMS("b")
		l := newLone(t, a, b)
		sealed := l.seal("data")
		for _, one := range []*kms{a, b} {
			l.restart(one)
			l.opens(sealed)
			if st := l.status(); len(st.SetAside) > 0 || len(st.Missing) > 0 {
				t.Errorf("%s alone: %v", one.id, st.Problems)
			}
		}
		l.keks, l.old = []keyring.KEK{newKMS("c")}, []keyring.KEK{a}
		l.Cluster.Restart(l.Server)
		l.opens(sealed)
	})
}

// TestOldKEKNeedNotWrap: it is there to open, and a KMS may have been told so.
func TestOldKEKNeedNotWrap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old := newKMS("old")
		l := newLone(t, old)
		sealed := l.seal("data")
		old.set(func(k *kms) { k.noWrap = errors.New("this key version may only decrypt") })
		l.keks, l.old = []keyring.KEK{newKMS("new")}, []keyring.KEK{old}
		l.Cluster.Restart(l.Server)
		if !l.readyWithin(time.Minute) {
			t.Errorf("not ready: %v", l.status().Problems)
		}
		l.opens(sealed)
		old.set(away["fails"])
		l.Cluster.Restart(l.Server)
		if st := l.status(); st.Ready || !named(st, "old") {
			t.Errorf("while the old KEK is away: %v", st.Problems)
		}
	})
}

// TestHangingKEKDoesNotKeepCloseWaiting and does not keep the server from its other work.
func TestHangingKEKDoesNotKeepCloseWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newKMS("a")
		l := newLone(t, a)
		l.seal("data")
		a.set(away["hangs"])
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
