package keyring_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
)

// goldenKeystores is where the keystore of the golden set is, in key files of version 2, under each KEK of the set.
const goldenKeystores = "testdata/v2"

var writeGoldenKeystores = flag.Bool("golden.keystores", false, "write golden keystores into "+goldenKeystores+", where there must be none")

// goldenKEKs are the KEKs of the golden set, by the names of the keystores of version 2.
func goldenKEKs(t *testing.T) (golden, map[string]keyring.KEK) {
	t.Helper()
	var g golden
	if err := json.Unmarshal(readFile(t, filepath.Join(goldenDir, "set.json")), &g); err != nil {
		t.Fatal(err)
	}
	keks := g.keks(t)
	keks["keystore-file"] = keks[""]
	delete(keks, "")
	return g, keks
}

// TestGoldenKeystoresOfVersion2 opens the keystores of version 2 that were written once.
func TestGoldenKeystoresOfVersion2(t *testing.T) { checkGoldenKeystores(t, goldenKeystores) }

// TestGoldenKeystoresOfThisBuild writes them as this build does, and opens them. With -golden.keystores they are the ones to
// keep, if there are none.
func TestGoldenKeystoresOfThisBuild(t *testing.T) {
	to := t.TempDir()
	if *writeGoldenKeystores {
		to = goldenKeystores
	}
	g, keks := goldenKEKs(t)
	for name, kek := range keks {
		dir := t.TempDir()
		unpack(t, filepath.Join(goldenDir, "node.tar.gz"), dir)
		n, _ := goldenNode(t, dir, "EdDSA", kek, g.keks(t)[""])
		keyring.Store(n.Keyring()).UseFiles(2)
		if err := n.Keyring().RewrapAll(t.Context()); err != nil {
			t.Fatal(err)
		}
		keyringtest.CloseNode(t, n)
		if err := os.Remove(filepath.Join(dir, "keystore/.lock")); err != nil {
			t.Fatal(err)
		}
		if err := os.CopyFS(filepath.Join(to, name), os.DirFS(filepath.Join(dir, "keystore"))); err != nil {
			t.Fatal(err) // what is there stays as it is
		}
	}
	checkGoldenKeystores(t, to)
}

func checkGoldenKeystores(t *testing.T, from string) {
	g, keks := goldenKEKs(t)
	for name, kek := range keks {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			unpack(t, filepath.Join(goldenDir, "node.tar.gz"), dir)
			files := filepath.Join(dir, "keystore")
			replaceKeystore(t, files, filepath.Join(from, name))
			before := map[string][]byte{}
			entries, err := os.ReadDir(files)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				if b := readFile(t, filepath.Join(files, e.Name())); strings.Contains(e.Name(), ".nks.json") {
					before[e.Name()] = b
					if !bytes.HasPrefix(b, []byte("{\n  \"Version\": 2,\n")) {
						t.Errorf("%s is of another version", e.Name())
					}
				}
			}
			g.checkKeystore(t, files, kek)
			n, _ := goldenNode(t, dir, "EdDSA", kek)
			g.check(t, n)
			g.goOn(t, n, kek, dir)
			for name, b := range before {
				if !bytes.Equal(readFile(t, filepath.Join(files, name)), b) {
					t.Errorf("%s was written again", name)
				}
			}
		})
	}
}
