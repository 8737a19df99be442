package kek_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/nks"
	"example.com/keyring/internal/seal"
	"filippo.io/age"
)

// newKey makes a key, and what its file says of it but for what is wrapped.
func newKey(t testing.TB) (nks.File, *nks.Material) {
	t.Helper()
	m, err := nks.Generate("EdDSA")
	if err != nil {
		t.Fatal(err)
	}
	id := nks.ID{1}
	return nks.File{ID: id, Algorithm: "EdDSA", Check: m.Check(id, "EdDSA"), Created: time.Now().UTC()}, m
}

func decoded(t testing.TB, content []byte) *nks.File {
	t.Helper()
	file, err := nks.DecodeFile(content)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// encoded is the file of a new key, wrapped under KEKs.
func encoded(t testing.TB, keks ...kek.KEK) *nks.File {
	t.Helper()
	file, m := newKey(t)
	for _, k := range keks {
		wrapped, err := k.Wrap(t.Context(), m.Encode(), file.AAD())
		if err != nil {
			t.Fatal(err)
		}
		file.Wrapped = append(file.Wrapped, nks.Wrapped{KEK: k.ID(), Ciphertext: wrapped})
	}
	return &file
}

// blamed is the KEK that an error of a set blames, and whether it was asked.
func blamed(t testing.TB, err error) (id string, asked bool) {
	t.Helper()
	var e *kek.Error
	if !errors.As(err, &e) {
		t.Fatalf("%v blames nothing", err)
	}
	return e.KEK, !e.Skipped
}

// isDown reports whether a set counts a KEK as down.
func isDown(s *kek.Set, id string) bool {
	return slices.ContainsFunc(s.Status(), func(st kek.Status) bool { return st.ID == id && st.Down != nil })
}

func TestEncodedFileOpensUnderEachKEKAlone(t *testing.T) {
	a, b := kektest.New("a"), kektest.New("b")
	file, m := newKey(t)
	content, opened, err := kek.NewSet([]kek.KEK{a, b}, nil).Encode(t.Context(), &file, m)
	if err != nil || *opened.Root() != *m.Root() {
		t.Fatalf("it opens to another key: %v", err)
	}
	for _, k := range []kek.KEK{a, b} {
		got, err := kek.NewSet([]kek.KEK{k}, nil).Decode(t.Context(), decoded(t, content))
		if err != nil || *got.Material.Root() != *m.Root() || !got.Rewrap {
			t.Errorf("%s: to be rewrapped: %v, %v", k.ID(), got.Rewrap, err)
		}
	}
	if got, err := kek.NewSet([]kek.KEK{b, a}, nil).Decode(t.Context(), decoded(t, content)); err != nil || got.Rewrap {
		t.Errorf("both: to be rewrapped: %v, %v", got.Rewrap, err)
	}
	if got, err := kek.NewSet([]kek.KEK{kektest.New("c")}, []kek.KEK{a}).Decode(t.Context(), decoded(t, content)); err != nil || !got.Rewrap {
		t.Errorf("an old one: to be rewrapped: %v, %v", got.Rewrap, err)
	}
}

// TestEncodeFailsWithItsKEK: each KEK has to wrap, and one of them has to open what is to be written.
func TestEncodeFailsWithItsKEK(t *testing.T) {
	for name, c := range map[string]struct {
		fail func(*kektest.KMS)
		want error
	}{
		"does not wrap":                       {func(k *kektest.KMS) { k.NoWrap = kektest.ErrDown }, kektest.ErrDown},
		"does not unwrap":                     {func(k *kektest.KMS) { k.NoUnwrap = kektest.ErrDown }, nil},
		"does not unwrap, nor does the other": {func(k *kektest.KMS) { k.NoUnwrap = kektest.ErrDown }, kektest.ErrDown},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := kektest.New("a"), kektest.New("b")
			b.Set(c.fail)
			if strings.HasSuffix(name, "the other") {
				a.Set(func(k *kektest.KMS) { k.NoUnwrap = kek.ErrWrapOnly })
			}
			set := kek.NewSet([]kek.KEK{a, b}, nil)
			file, m := newKey(t)
			content, opened, err := set.Encode(t.Context(), &file, m)
			if !errors.Is(err, c.want) || (err == nil) != (content != nil) || (err == nil) != (opened != nil) {
				t.Fatalf("%v, and a file: %v", err, content != nil)
			}
			if err == nil {
				return
			}
			if id, asked := blamed(t, err); id != "b" || !asked || !isDown(set, "b") || isDown(set, "a") {
				t.Errorf("%v blames %q: %v", err, id, set.Status())
			}
		})
	}
}

func TestDecodeSaysWhatIsToBlame(t *testing.T) {
	a, local := kektest.New("a"), kektest.File(t, kektest.CountingKey())
	nonsense := func(k kek.KEK) *nks.File {
		file := encoded(t, k)
		b, err := k.Wrap(t.Context(), []byte("nonsense"), file.AAD())
		if err != nil {
			t.Fatal(err)
		}
		file.Wrapped[0].Ciphertext = b
		return file
	}
	for name, c := range map[string]struct {
		file *nks.File
		kek  string // empty: the file
		want error
	}{
		"not configured":                                {encoded(t, kektest.New("b")), "b", nil},
		"another KEK by that name":                      {encoded(t, &kektest.KMS{Name: "a", Inner: local}), "a", seal.ErrOpen},
		"no key in it, by a KMS":                        {nonsense(a), "a", nks.ErrFormat},
		"no key in it, by a local KEK":                  {nonsense(local), "", nks.ErrFormat},
		"another, of one that is known by its ID alone": {encoded(t, kektest.Passphrase(t, "correct hoarse")), "passphrase", seal.ErrOpen},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := kek.NewSet([]kek.KEK{a, local, kektest.Passphrase(t, "correct horse")}, nil).Decode(t.Context(), c.file)
			if m.Material != nil || err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Fatalf("%v, %v", m, err)
			}
			if id, asked := blamed(t, err); id != c.kek || !asked {
				t.Errorf("%v blames %q", err, id)
			}
		})
	}
}

// TestFirstToBlameIsWhatMayPass: a KEK that can open the file another day, then a content that is wrong, then escrow.
func TestFirstToBlameIsWhatMayPass(t *testing.T) {
	local := kektest.File(t, kektest.CountingKey())
	file := encoded(t, kektest.New("down"), kektest.New("escrow"))
	nonsense, err := local.Wrap(t.Context(), []byte("nonsense"), file.AAD())
	if err != nil {
		t.Fatal(err)
	}
	file.Wrapped = append(file.Wrapped, nks.Wrapped{KEK: local.ID(), Ciphertext: nonsense})
	down, escrow := kektest.New("down"), kektest.New("escrow")
	down.Set(kektest.Outages["fails"])
	escrow.Set(func(k *kektest.KMS) { k.NoUnwrap = kek.ErrWrapOnly })
	for _, c := range []struct {
		keks []kek.KEK
		want string
	}{
		{[]kek.KEK{down, local, escrow}, "down"}, {[]kek.KEK{escrow, local, down}, "down"}, {[]kek.KEK{local, down, escrow}, "down"},
		{[]kek.KEK{down}, "down"}, // and not those that are not configured
	} {
		_, err := kek.NewSet(c.keks, nil).Decode(t.Context(), file)
		if id, _ := blamed(t, err); id != c.want {
			t.Errorf("%v blames %q", err, id)
		}
	}
	file.Wrapped = file.Wrapped[1:]
	for _, keks := range [][]kek.KEK{{local, escrow}, {escrow, local}} {
		_, err := kek.NewSet(keks, nil).Decode(t.Context(), file)
		if id, _ := blamed(t, err); id != "" {
			t.Errorf("%v blames %q", err, id)
		}
	}
}

// TestMaterialIsHeldAgainstTheCheckValue: a KEK may give back another key than the file is of.
func TestMaterialIsHeldAgainstTheCheckValue(t *testing.T) {
	file, _ := newKey(t)
	_, other := newKey(t)
	wrapped, err := kek.Inline().Wrap(t.Context(), other.Encode(), file.AAD())
	if err != nil {
		t.Fatal(err)
	}
	file.Wrapped = []nks.Wrapped{{KEK: kek.InlineID, Ciphertext: wrapped}}
	if m, err := kek.NewSet([]kek.KEK{kek.Inline()}, nil).Decode(t.Context(), &file); m.Material != nil || !errors.Is(err, nks.ErrCorrupt) {
		t.Errorf("%v, %v", m, err)
	}
}

func TestProbe(t *testing.T) {
	t.Parallel()
	only := func(k *kektest.KMS) { k.NoUnwrap = kek.ErrWrapOnly }
	for name, c := range map[string]struct {
		present, old func(*kektest.KMS)
		can          bool
		down         string
	}{
		"all answer":                         {nil, nil, true, ""},
		"it only wraps":                      {only, nil, false, ""},
		"it fails":                           {kektest.Outages["fails"], nil, true, "a"},
		"it hangs":                           {kektest.Outages["hangs"], nil, true, "a"},
		"it does not unwrap":                 {func(k *kektest.KMS) { k.NoUnwrap = kektest.ErrDown }, nil, true, "a"},
		"the old one fails":                  {nil, kektest.Outages["fails"], true, "old"},
		"the old one does not wrap any more": {nil, func(k *kektest.KMS) { k.NoWrap = errRefused }, true, ""},
		"the old one refuses":                {nil, func(k *kektest.KMS) { k.NoUnwrap = errRefused }, true, "old"},
		"the old one is escrow":              {nil, only, true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, old := kektest.New("a"), kektest.New("old")
				set := kek.NewSet([]kek.KEK{a}, []kek.KEK{old})
				for k, change := range map[*kektest.KMS]func(*kektest.KMS){a: c.present, old: c.old} {
					if change != nil {
						k.Set(change)
					}
				}
				if can := set.Probe(t.Context()); can != c.can {
					t.Errorf("it can unwrap: %v", can)
				}
				for _, id := range []string{"a", "old"} {
					if isDown(set, id) != (id == c.down) {
						t.Errorf("%s: %v", id, set.Status())
					}
				}
				if (set.Down() != nil) != (c.down != "") || (set.WrappingDown() != nil) != (c.down == "a") {
					t.Errorf("down: %v, of those that wrap: %v", set.Down(), set.WrappingDown())
				}
				a.Set(kektest.Answers)
				old.Set(kektest.Answers)
				time.Sleep(time.Second) // virtual
				if set.Probe(t.Context()); set.Down() != nil {
					t.Errorf("when they answer again: %v", set.Down())
				}
			})
		})
	}
	if local := kek.NewSet([]kek.KEK{kektest.Age(t, kektest.Identity(t))}, nil); local.Probe(t.Context()) {
		t.Error("escrow can unwrap")
	}
}

// TestCallThatIsGivenUpDoesNotTakeAKEKDown: it may be slow, and the caller in a hurry.
func TestCallThatIsGivenUpDoesNotTakeAKEKDown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := kektest.New("a")
		set := kek.NewSet([]kek.KEK{a}, nil)
		stored := encoded(t, a)
		a.Set(kektest.Outages["hangs"])
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		file, m := newKey(t)
		for what, call := range map[string]func() error{
			"encode": func() error { _, _, err := set.Encode(ctx, &file, m); return err },
			"decode": func() error { _, err := set.Decode(ctx, stored); return err },
		} {
			if err := call(); !errors.Is(err, context.DeadlineExceeded) || set.Down() != nil {
				t.Errorf("%s: %v, down: %v", what, err, set.Down())
			}
		}
		if set.Probe(ctx); set.Down() != nil {
			t.Errorf("probe: down: %v", set.Down())
		}
	})
}

// TestLocalKEKIsAskedAgain: one that needs no answer from elsewhere can time out too, if deriving its key takes
// long.
func TestLocalKEKIsAskedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := kektest.New("a")
		set := kek.NewSet([]kek.KEK{kek.LocalKEK{KEK: a}}, nil)
		file := encoded(t, a)
		a.Set(kektest.Outages["hangs"])
		if _, err := set.Decode(t.Context(), file); !errors.Is(err, context.DeadlineExceeded) || !isDown(set, "a") {
			t.Errorf("while it takes long: %v, down: %v", err, set.Down())
		}
		a.Set(kektest.Answers)
		time.Sleep(time.Second) // virtual
		if !set.Probe(t.Context()) || set.Down() != nil {
			t.Errorf("down: %v", set.Down())
		}
		if _, err := set.Decode(t.Context(), file); err != nil {
			t.Error(err)
		}
	})
}

// TestFIPSOnlyRefusesWhatCannotWork and nothing else, before anything is opened. It runs itself
// in a process that allows nothing else.
func TestFIPSOnlyRefusesWhatCannotWork(t *testing.T) {
	if os.Getenv("KEYRING_TEST_FIPS") != "" {
		_, err := kek.Passphrase([]byte("passphrase"), kek.Argon2id{})
		fmt.Println("passphrase:", err)
		_, err = kek.Age([]age.Recipient{nameless{}})
		fmt.Println("age:", err)
		set := kek.NewSet([]kek.KEK{kektest.File(t, kektest.CountingKey()), kek.Inline()}, nil)
		file, m := newKey(t)
		content, opened, err := set.Encode(t.Context(), &file, m)
		if err != nil {
			t.Fatalf("the other KEKs: %v", err)
		}
		opened.Wipe()
		if _, err := set.Decode(t.Context(), decoded(t, content)); err != nil {
			t.Errorf("the other KEKs: %v", err)
		}
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestFIPSOnlyRefusesWhatCannotWork$", "-test.v")
	cmd.Env = append(os.Environ(), "GODEBUG=fips140=only", "KEYRING_TEST_FIPS=1")
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Count(string(out), "not allowed in FIPS 140-only mode") != 2 || !strings.Contains(string(out), "--- PASS") {
		t.Errorf("%v: %s", err, out)
	}
}
