package nks_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"example.com/keyring/internal/bounded/boundedtest"
	"example.com/keyring/internal/nks"
)

// FuzzDecodeFile tries each input as it is and under a Sum that fits, so that the
// fuzzer gets past the Sum.
func FuzzDecodeFile(f *testing.F) {
	for _, v := range fileVectors(f) {
		f.Add(v.Text)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, b := range [][]byte{b, resum(b)} {
			var file *nks.File
			var err error
			boundedtest.Memory(t, len(b), 64<<10, 16, func() { file, err = nks.DecodeFile(b) })
			if err != nil {
				if !errors.Is(err, nks.ErrFormat) || file != nil {
					t.Fatalf("%v, %v", file, err)
				}
				continue
			}
			equal(t, "file", encode(t, file), b)
		}
	})
}

func FuzzDecode(f *testing.F) {
	for _, v := range vectors(f) {
		f.Add([]byte(v.Material))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := nks.Decode(b)
		if err != nil {
			if !errors.Is(err, nks.ErrFormat) || m != nil {
				t.Fatalf("%v, %v", m, err)
			}
			return
		}
		if !bytes.Equal(m.Encode(), b) {
			t.Fatal("read, but not what it would be written as")
		}
		m.Public("RS256") // must not panic
	})
}

// FuzzDecodeNomad tries each input as a file and, in a file that opens, as the RSA key.
func FuzzDecodeNomad(f *testing.F) {
	for _, v := range nomadFiles(f) {
		f.Add(v.Text)
		if _, pkcs1, ok := bytes.Cut(v.Key.Signing, []byte{0x04, 0x82}); ok {
			f.Add([]byte(pkcs1[2:]))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var n *nks.Nomad
		var err error
		boundedtest.Memory(t, len(b), 64<<10, 16, func() { n, err = nks.DecodeNomad(b) })
		if err == nil {
			tryNomad(t, b, n)
		} else if !errors.Is(err, nks.ErrFormat) || n != nil {
			t.Fatalf("%v, %v", n, err)
		}
		around := wrapNomad(t, b)
		if n, err := nks.DecodeNomad(around); err == nil {
			tryNomad(t, around, n)
		}
	})
}

// tryNomad wants of a file that was read that it is one of Nomad's, and that the material it may
// open to goes the way of all material.
func tryNomad(t *testing.T, b []byte, n *nks.Nomad) {
	if !nks.IsNomad(b) || !json.Valid(b) {
		t.Fatal("read, but not one of Nomad's")
	}
	name := strings.TrimSuffix(nks.FileName(n.ID), ".nks.json") + "." + n.Provider + ".nks.json"
	if id, ok := nks.ParseNomadName(name); !ok || id != n.ID {
		t.Fatalf("%q is not its name", name)
	}
	m, algorithm, err := n.Open()
	if err != nil {
		if want := map[bool]error{true: nks.ErrFormat, false: nks.ErrNomadProvider}[n.Inline()]; !errors.Is(err, want) {
			t.Fatal(err)
		}
		return
	}
	if _, err := m.Public(algorithm); err != nil {
		t.Fatal(err)
	}
	if back, err := nks.Decode(m.Encode()); err != nil || !same(m, back) {
		t.Fatal(err)
	}
}

func FuzzParseNomadName(f *testing.F) {
	for _, v := range nomadFiles(f) {
		f.Add(v.File)
	}
	f.Fuzz(func(t *testing.T, name string) {
		id, ok := nks.ParseNomadName(name)
		if !ok {
			if id != [16]byte{} {
				t.Fatalf("%x, but not ok", id)
			}
			return
		}
		if len(name) > 255 || !filepath.IsLocal(name) || filepath.Base(name) != name {
			t.Fatalf("%q can't be a file", name)
		}
		if !strings.HasPrefix(name, strings.TrimSuffix(nks.FileName(id), "nks.json")) {
			t.Fatalf("%q has another ID", name)
		}
	})
}
