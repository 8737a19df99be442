package nks_test

import (
	"slices"
	"testing"

	"example.com/keyring/internal/nks"
)

func TestMACVectors(t *testing.T) {
	for _, v := range vectors2(t) {
		f, err := nks.DecodeFile(v.Text)
		if err != nil {
			t.Fatal(err)
		}
		mac := v.material(t).MAC(f)
		equal(t, "MAC", mac[:], v.MAC)
		if !v.material(t).Authentic(f) {
			t.Errorf("%s is not authentic", v.File)
		}
	}
}

// TestMACTellsEveryChangeOfTheEntries: what a KEK does not bind is how many entries there are, and which.
func TestMACTellsEveryChangeOfTheEntries(t *testing.T) {
	v := vectors2(t)[1]
	m := v.material(t)
	for name, alter := range map[string]func(f *nks.File){
		"one removed":       func(f *nks.File) { f.Wrapped = f.Wrapped[:2] },
		"the first removed": func(f *nks.File) { f.Wrapped = f.Wrapped[1:] },
		"one added":         func(f *nks.File) { f.Wrapped = append(f.Wrapped, nks.Wrapped{KEK: "z", Ciphertext: []byte{1}}) },
		"two exchanged":     func(f *nks.File) { slices.Reverse(f.Wrapped[:2]) },
		"one altered":       func(f *nks.File) { f.Wrapped[2].Ciphertext[99] ^= 1 },
		"no version":        func(f *nks.File) { f.Wrapped[0].Version = "" },
		"version elsewhere": func(f *nks.File) { f.Wrapped[0].Version, f.Wrapped[1].Version = "", "3" },
	} {
		f := v.file()
		if alter(f); m.Authentic(f) {
			t.Errorf("%s, and it is authentic", name)
		}
	}
}

// TestMACIsOfOneKey and of version 2 of files.
func TestMACIsOfOneKey(t *testing.T) {
	vs := vectors2(t)
	if vs[1].material(t).Authentic(vs[0].file()) {
		t.Error("with another key")
	}
	if first := vectors(t)[0]; first.material(t).Authentic(first.file()) {
		t.Error("of version 1")
	}
}
