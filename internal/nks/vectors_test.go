package nks_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"example.com/keyring/internal/nks"
)

// vector is one key of testdata/vectors.json, with its file beside it, or of testdata/v2/vectors.json.
type vector struct {
	File      string
	ID        hexBytes
	Algorithm string
	Root      hexBytes
	Signing   hexBytes
	Public    hexBytes
	Material  hexBytes
	Check     hexBytes
	AAD       hexBytes
	MAC       hexBytes // empty in version 1
	Created   time.Time
	Wrapped   []struct {
		KEK        string
		Version    string
		Ciphertext hexBytes
	}

	Text []byte `json:"-"` // what File contains
}

type hexBytes []byte

func (h *hexBytes) UnmarshalText(b []byte) (err error) {
	*h, err = hex.DecodeString(string(b))
	return err
}

func vectors(t testing.TB) []vector { t.Helper(); return vectorsIn(t, "vectors.json") }

// vectors2 are those of version 2 of files.
func vectors2(t testing.TB) []vector { t.Helper(); return vectorsIn(t, "v2/vectors.json") }

// fileVectors are those of both versions.
func fileVectors(t testing.TB) []vector { t.Helper(); return append(vectors(t), vectors2(t)...) }

func vectorsIn(t testing.TB, name string) []vector {
	t.Helper()
	var vs []vector
	if err := json.Unmarshal(read(t, name), &vs); err != nil {
		t.Fatal(err)
	}
	if len(vs) == 0 {
		t.Fatal("no vectors")
	}
	for i := range vs {
		vs[i].Text = read(t, vs[i].File)
	}
	return vs
}

func read(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (v *vector) material(t testing.TB) *nks.Material {
	t.Helper()
	m, err := nks.Decode(v.Material)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// file is the vector's file, put together from its parts.
func (v *vector) file() *nks.File {
	f := &nks.File{
		Version:   1,
		ID:        [16]byte(v.ID),
		Algorithm: v.Algorithm,
		Check:     [32]byte(v.Check),
		Created:   v.Created,
	}
	for _, w := range v.Wrapped {
		f.Wrapped = append(f.Wrapped, nks.Wrapped{KEK: w.KEK, Version: w.Version, Ciphertext: bytes.Clone(w.Ciphertext)})
	}
	if len(v.MAC) > 0 {
		f.Version, f.MAC = 2, [32]byte(v.MAC)
	}
	return f
}

func TestMaterialVectors(t *testing.T) {
	for _, v := range vectors(t) {
		m := v.material(t)
		equal(t, "root", m.Root()[:], v.Root)
		equal(t, "signing", m.Signing(), v.Signing)
		equal(t, "material", m.Encode(), v.Material)
		check := m.Check([16]byte(v.ID), v.Algorithm)
		equal(t, "check", check[:], v.Check)
		public, err := m.Public(v.Algorithm)
		if err != nil {
			t.Fatal(err)
		}
		equal(t, "public", public, v.Public)
	}
}

func TestFileVectors(t *testing.T) {
	for _, v := range fileVectors(t) {
		text, err := v.file().Encode()
		if err != nil {
			t.Fatal(err)
		}
		equal(t, "file", text, v.Text)
		f, err := nks.DecodeFile(v.Text)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(f, v.file()) {
			t.Errorf("%s decodes into %v", v.File, f)
		}
		equal(t, "aad", f.AAD(), v.AAD)
		if name := nks.FileName(f.ID); name != filepath.Base(v.File) {
			t.Errorf("name %s, want %s", name, v.File)
		}
	}
}

// TestPackageDocHasTheFirstVector keeps the documentation true.
func TestPackageDocHasTheFirstVector(t *testing.T) {
	src, err := parser.ParseFile(token.NewFileSet(), "nks.go", nil, parser.ParseComments|parser.PackageClauseOnly)
	if err != nil {
		t.Fatal(err)
	}
	doc := squeeze(src.Doc.Text())
	v := vectors(t)[0]
	for name, want := range map[string]string{
		"id":        hex.EncodeToString(v.ID),
		"algorithm": v.Algorithm,
		"signing":   hex.EncodeToString(v.Signing),
		"material":  hex.EncodeToString(v.Material),
		"check":     hex.EncodeToString(v.Check),
		"aad":       hex.EncodeToString(v.AAD),
		"":          string(v.Text),
		"mac":       hex.EncodeToString(vectors2(t)[0].MAC),
		"{":         string(vectors2(t)[0].Text)[1:],
	} {
		if !strings.Contains(doc, name+squeeze(want)) {
			t.Errorf("the package doc lacks %s %s", name, want)
		}
	}
}

func squeeze(s string) string { return strings.Join(strings.Fields(s), "") }

func equal(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Errorf("%s is\n%x, want\n%x", what, got, want)
	}
}
