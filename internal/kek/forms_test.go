package kek_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/nks"
)

// TestEachVersionOfFilesHasItsEntries: older builds know no others, and no KEK of the name file2. Both open, and neither is
// to be rewrapped for that alone: the keystore knows which version it writes.
func TestEachVersionOfFilesHasItsEntries(t *testing.T) {
	pass, _ := newQuick(t, "correct horse", kek.Argon2id{})
	set := kek.NewSet([]kek.KEK{kektest.File(t, kektest.CountingKey()), pass, kek.Inline()}, nil)
	for version, want := range map[int]struct {
		names []string
		form  byte
	}{
		0: {[]string{"file:74d8b8ddbeaf0f6d", "passphrase", "inline"}, 1},
		1: {[]string{"file:74d8b8ddbeaf0f6d", "passphrase", "inline"}, 1},
		2: {[]string{"file2:d536c7e5218cb682", "passphrase", "inline"}, 2},
	} {
		file, m := newKey(t)
		file.Version = version
		content, _, err := set.Encode(t.Context(), &file, m)
		if err != nil {
			t.Fatal(err)
		}
		written := decoded(t, content)
		var names []string
		for _, w := range written.Wrapped {
			names = append(names, w.KEK)
		}
		if written.Version != max(1, version) || !slices.Equal(names, want.names) || written.Wrapped[1].Ciphertext[0] != want.form {
			t.Errorf("version %d: version %d of %q", version, written.Version, names)
		}
		if got, err := set.Decode(t.Context(), written); err != nil || got.Rewrap || got.Altered || got.Unproven {
			t.Errorf("version %d: %+v, %v", version, got, err)
		}
		if m.Authentic(written) != (version == 2) {
			t.Errorf("version %d: the MAC is wrong", version)
		}
	}
}

// TestAlteredFileIsSaidToBe, whichever entry opens it: escrow that was taken out or spoiled must not be found out on the day
// when it is needed.
func TestAlteredFileIsSaidToBe(t *testing.T) {
	local, escrow := kektest.File(t, kektest.CountingKey()), kektest.Age(t, kektest.Identity(t))
	set := kek.NewSet([]kek.KEK{local, escrow}, nil)
	for name, alter := range map[string]func(f *nks.File){
		"removed": func(f *nks.File) { f.Wrapped = f.Wrapped[:1] },
		"spoiled": func(f *nks.File) { f.Wrapped[1].Ciphertext = make([]byte, 300) },
		"added": func(f *nks.File) {
			f.Wrapped = append(f.Wrapped, nks.Wrapped{KEK: "another", Ciphertext: []byte{1}})
		},
		"older": func(f *nks.File) { f.Created = f.Created.AddDate(-1, 0, 0) },
	} {
		file, m := newKey(t)
		file.Version = 2
		content, _, err := set.Encode(t.Context(), &file, m)
		if err != nil {
			t.Fatal(err)
		}
		written := decoded(t, content)
		alter(written)
		if got, err := set.Decode(t.Context(), written); err != nil || !got.Altered || *got.Material.Root() != *m.Root() {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

// TestWhoKnowsRecipientsProvesNothing: a file that age alone opens may be anybody's. It proves something if another KEK opens
// it too, wherever that one stands.
func TestWhoKnowsRecipientsProvesNothing(t *testing.T) {
	identity := kektest.Identity(t)
	local, escrow, back := kektest.File(t, kektest.CountingKey()), kektest.Age(t, identity), kektest.Age(t, identity, identity)
	forged := encoded(t, escrow)
	forged.Wrapped = append(forged.Wrapped, nks.Wrapped{KEK: local.ID(), Ciphertext: make([]byte, 100)})
	for name, c := range map[string]struct {
		set      *kek.Set
		file     *nks.File
		unproven bool
	}{
		"age alone":                {kek.NewSet([]kek.KEK{local}, []kek.KEK{back}), encoded(t, escrow), true},
		"age, beside noise":        {kek.NewSet([]kek.KEK{local}, []kek.KEK{back}), forged, true},
		"age first, then another":  {kek.NewSet([]kek.KEK{back, local}, nil), encoded(t, escrow, local), false},
		"another, and age beside":  {kek.NewSet([]kek.KEK{local, escrow}, nil), encoded(t, local, escrow), false},
		"age, and one that's gone": {kek.NewSet([]kek.KEK{local}, []kek.KEK{back}), encoded(t, escrow, kektest.New("gone")), true},
		"a KMS":                    {kek.NewSet([]kek.KEK{kektest.New("kms")}, nil), encoded(t, kektest.New("kms")), false},
	} {
		if got, err := c.set.Decode(t.Context(), c.file); err != nil || got.Unproven != c.unproven {
			t.Errorf("%s: unproven: %v, %v", name, got.Unproven, err)
		}
	}
}

// TestFileThatOthersMayReadIsWarnedOf, for as long as that is so: Status tells what was seen when somebody last looked, and does
// not look by itself.
func TestFileThatOthersMayReadIsWarnedOf(t *testing.T) {
	path := kektest.WriteFile(t, kektest.CountingKey())
	k, err := kek.File(path)
	if err != nil {
		t.Fatal(err)
	}
	set, said := kek.NewSet([]kek.KEK{k, kek.Inline()}, nil), ""
	for mode, warns := range map[os.FileMode]bool{0o600: false, 0o400: false, 0o440: false, 0o644: true, 0o604: true, 0o660: true, 0o602: true} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if got := set.Status()[0].Warning; got != said {
			t.Errorf("%v: Status has looked: %q", mode, got)
		}
		changed := set.LookAtFiles()
		all := set.Status()
		got := all[0].Warning
		if (got != "") != warns || warns && !strings.Contains(got, path) || all[1].Warning != "" || changed != (got != said) {
			t.Errorf("%v: %q, %q, changed: %v", mode, got, all[1].Warning, changed)
		}
		said = got
	}
}

// TestFileOfAnOldKEKMayGo after Rewrap. Others may still not read it while it is there.
func TestFileOfAnOldKEKMayGo(t *testing.T) {
	path := kektest.WriteFile(t, kektest.CountingKey())
	k, err := kek.File(path)
	if err != nil {
		t.Fatal(err)
	}
	set := kek.NewSet([]kek.KEK{kek.Inline()}, []kek.KEK{k})
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if changed := set.LookAtFiles(); !changed || !strings.Contains(set.Status()[1].Warning, path) {
		t.Errorf("others may read it: %+v", set.Status())
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if changed := set.LookAtFiles(); !changed || set.Status()[1].Warning != "" {
		t.Errorf("it is gone: %+v", set.Status())
	}
}

// TestFileThatNoLongerHasItsKEKIsWarnedOf, since a start needs it; and no longer once the key is back, in any form.
func TestFileThatNoLongerHasItsKEKIsWarnedOf(t *testing.T) {
	key := kektest.CountingKey()
	path := kektest.WriteFile(t, key)
	k, err := kek.File(path)
	if err != nil {
		t.Fatal(err)
	}
	other := bytes.Repeat([]byte{1, 2}, kek.Size/2)
	elsewhere, err := kek.File(kektest.WriteFile(t, other))
	if err != nil {
		t.Fatal(err)
	}
	set := kek.NewSet([]kek.KEK{k}, nil)
	write := func(b []byte) func() error { return func() error { return os.WriteFile(path, b, 0o600) } }
	for _, tt := range []struct {
		name string
		do   func() error
		want []string // none: nothing is wrong
	}{
		{"it is as it was", func() error { return nil }, nil},
		{"it is gone", func() error { return os.Remove(path) }, []string{path, "no such file", "a start of this server needs its file"}},
		{"it is back as text", write([]byte(hex.EncodeToString(key) + "\n")), nil},
		{"it has another key", write(other), []string{path, elsewhere.ID(), k.ID(), "after the next start"}},
		{"it is empty", write(nil), []string{path, "0 bytes", "a start of this server needs its file"}},
		{"it is back", write(key), nil},
		{"a directory has its place", func() error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) }, []string{path, "a start of this server needs its file"}},
	} {
		if err := tt.do(); err != nil {
			t.Fatal(err)
		}
		set.LookAtFiles()
		got := set.Status()[0].Warning
		if (got == "") != (tt.want == nil) {
			t.Errorf("%s: %q", tt.name, got)
		}
		for _, want := range tt.want {
			if !strings.Contains(got, want) {
				t.Errorf("%s: %q has no %q", tt.name, got, want)
			}
		}
		if strings.Contains(got, hex.EncodeToString(other[:4])) {
			t.Errorf("%s: it tells the key: %q", tt.name, got)
		}
	}
}
