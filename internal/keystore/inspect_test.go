package keystore_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/keystore"
	"example.com/keyring/internal/keystore/keystoretest"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
)

// troubles are files of every kind of trouble in the place of a key's, each by its name.
func troubles(t *testing.T, id meta.KeyID, own kek.KEK) map[string]func(dir string) (name string, err error) {
	good, _ := newKeyFile(t, id, own)
	another, _ := newKeyFile(t, meta.KeyID{9}, own)
	inline, _ := newKeyFile(t, id, kek.Inline())
	usual := nks.FileName(id)
	content := func(b []byte) func(string) (string, error) {
		return func(dir string) (string, error) { return usual, os.WriteFile(filepath.Join(dir, usual), b, 0o600) }
	}
	all := map[string]func(string) (string, error){
		"good": content(good), "inline": content(inline), "empty": content(nil), "cut": content(good[:len(good)/2]),
		"text": content([]byte("hello")), "misnamed": content(another), "later": content(laterVersion(good)),
		"a byte flipped": content(append(bytes.Clone(good[:len(good)/2]), append([]byte{'!'}, good[len(good)/2+1:]...)...)),
		"oversized":      content(bytes.Repeat([]byte("x"), nks.MaxFile+1)),
		"directory":      func(dir string) (string, error) { return usual, os.Mkdir(filepath.Join(dir, usual), 0o700) },
		"symlink": func(dir string) (string, error) {
			return usual, errors.Join(os.WriteFile(filepath.Join(dir, "x"), good, 0o600), os.Symlink("x", filepath.Join(dir, usual)))
		},
		"another user's": func(dir string) (string, error) {
			_, err := content(good)(dir)
			if os.Geteuid() == 0 { // for others there is nothing that could be refused
				err = errors.Join(err, os.Chown(filepath.Join(dir, usual), 12345, -1))
			}
			return usual, err
		},
		"beside": func(dir string) (string, error) {
			return nks.BesideName(id), os.WriteFile(filepath.Join(dir, nks.BesideName(id)), good, 0o600)
		},
	}
	maps.Copy(all, nomadTroubles(t, id))
	return all
}

// nomadTroubles are files of Nomad's.
func nomadTroubles(t *testing.T, id meta.KeyID) map[string]func(string) (string, error) {
	all := map[string]func(string) (string, error){}
	for _, form := range []string{"1.4", "1.7", "1.8.3", "1.9", "kms", "damaged"} {
		k, other := keystoretest.NewNomadKey(t, 1, form), keystoretest.NewNomadKey(t, 2, form)
		k.ID, other.ID = id, meta.KeyID{8}
		for name, b := range k.Files(t) {
			all["Nomad "+form] = func(dir string) (string, error) { return name, os.WriteFile(filepath.Join(dir, name), b, 0o600) }
			all["Nomad "+form+" by a symlink"] = func(dir string) (string, error) {
				return name, errors.Join(os.WriteFile(filepath.Join(dir, "x"), b, 0o600), os.Symlink("x", filepath.Join(dir, name)))
			}
			for _, b := range other.Files(t) {
				all["Nomad "+form+" misnamed"] = func(dir string) (string, error) { return name, os.WriteFile(filepath.Join(dir, name), b, 0o600) }
			}
		}
	}
	return all
}

// TestInspectSaysWhatAServerDoes with each file, for every kind of trouble and every set of KEKs.
func TestInspectSaysWhatAServerDoes(t *testing.T) {
	id, own := meta.KeyID{1}, fileKEK(t, countingKey())
	sets := map[string][]kek.KEK{
		"own": {own}, "inline": {kek.Inline()}, "both": {own, kek.Inline()},
		"another": {fileKEK(t, bytes.Repeat([]byte{7}, 32))}, "passphrase": {passphraseKEK(t, "a passphrase that is long enough")},
	}
	verdicts := map[keystore.Verdict]int{}
	for what, put := range troubles(t, id, own) {
		for with, keks := range sets {
			dir := t.TempDir()
			name, err := put(dir)
			if err != nil {
				t.Fatal(err)
			}
			files, err := keystore.Inspect(t.Context(), dir, keks)
			i := slices.IndexFunc(files, func(f keystore.File) bool { return f.Name == name })
			if err != nil || i < 0 {
				t.Fatalf("%s, %s: %v, %v", what, with, files, err)
			}
			f := files[i]
			verdicts[f.Use]++
			if want := done(t, dir, id, name, keks); f.Use != want {
				t.Errorf("%s, %s: it says %q (%v), and a server does %q", what, with, f.Use, f.Err, want)
			}
			if (f.Use == keystore.UseKey) != (f.Err == nil) || f.Use == keystore.UseKey && (len(f.Opens) == 0 || f.Algorithm == "" || f.Created.IsZero()) {
				t.Errorf("%s, %s: %+v", what, with, f)
			}
		}
	}
	for _, v := range []keystore.Verdict{keystore.UseKey, keystore.UseWaits, keystore.UseSetAside, keystore.UseRefused} {
		if verdicts[v] == 0 {
			t.Errorf("no file is %q: %v", v, verdicts)
		}
	}
}

// TestInspectSaysWhatAServerDoesWithTheID of the keystore: it is read, or set aside, or keeps the server from starting.
func TestInspectSaysWhatAServerDoesWithTheID(t *testing.T) {
	for content, want := range map[string]keystore.Verdict{
		"00112233445566778899aabbccddeeff\n": keystore.UseNone, "": keystore.UseSetAside, "00112233445566778899aabbccddeeff": keystore.UseSetAside,
		strings.Repeat("0", nks.MaxFile+1): keystore.UseSetAside, "v2 ...": keystore.UseNone,
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "keystore.id"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		files, err := keystore.Inspect(t.Context(), dir, nil)
		if err != nil || len(files) != 1 || files[0].Use != want {
			t.Errorf("%.40q: %+v, %v", content, files, err)
			continue
		}
		fsys, err := durable.OpenDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		s, err := openOn(t.Context(), fsys, []kek.KEK{kek.Inline()}, nil)
		if newer := errors.Is(files[0].Err, nks.ErrVersion); newer != (err != nil) || newer != strings.HasPrefix(content, "v") {
			t.Errorf("%.40q: it says %v, and the server %v", content, files[0].Err, err)
		}
		if err != nil {
			continue
		}
		if aside := s.SetAside(); (len(aside) == 1) != (want == keystore.UseSetAside) || (files[0].Err == nil) != (want == keystore.UseNone) {
			t.Errorf("%.40q: it says %v, and the server sets aside %q", content, files[0].Err, aside)
		}
		s.Close()
	}
}

// done opens a store and returns what it has done with the one key file in it.
func done(t *testing.T, dir string, id meta.KeyID, name string, keks []kek.KEK) keystore.Verdict {
	t.Helper()
	fsys, err := durable.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	s, err := openOn(t.Context(), fsys, keks, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, gone := os.Lstat(filepath.Join(dir, name))
	faults := s.Report(&meta.Ring{}).Faults
	switch {
	case s.InMemory(id):
		return keystore.UseKey
	case gone != nil && len(s.SetAside()) == 1:
		return keystore.UseSetAside
	case gone == nil && len(faults) == 1 && faults[0].Cause == keystore.NomadFile:
		return keystore.UseRefused
	case gone == nil && len(faults) == 1:
		return keystore.UseWaits
	}
	return keystore.Verdict(fmt.Sprintf("something else: %v, %v", s.SetAside(), faults))
}
