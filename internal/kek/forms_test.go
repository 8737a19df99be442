package kek_test

import (
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
	if err := errors.Join(os.Chmod(path, 0o644), os.Remove(path)); err != nil {
		t.Fatal(err)
	}
	set.LookAtFiles()
	if got := set.Status()[0].Warning; got != "" {
		t.Errorf("it is gone: %q", got)
	}
}
