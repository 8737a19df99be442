package nks_test

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"example.com/keyring/internal/nks"
)

var algorithms = []string{"RS256", "ES256", "EdDSA"}

// encodeMaterial follows the package doc, not the code.
func encodeMaterial(root, signing []byte) []byte {
	b := binary.BigEndian.AppendUint32([]byte{1}, uint32(len(root)))
	b = binary.BigEndian.AppendUint32(append(b, root...), uint32(len(signing)))
	return append(b, signing...)
}

func materialOf(t testing.TB, root, signing []byte) *nks.Material {
	t.Helper()
	m, err := nks.Decode(encodeMaterial(root, signing))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestGenerateMakesAKeyOfItsAlgorithmOnly(t *testing.T) {
	for _, made := range algorithms {
		m, err := nks.Generate(made)
		if err != nil {
			t.Fatal(err)
		}
		for _, asked := range append(algorithms, "", "none", "HS256", "rs256") {
			der, err := m.Public(asked)
			if asked != made {
				if !errors.Is(err, nks.ErrFormat) {
					t.Errorf("%s key as %q: %v", made, asked, err)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			samePair(t, m.Signing(), der)
		}
	}
}

func samePair(t *testing.T, private, public []byte) {
	t.Helper()
	priv, err := x509.ParsePKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := x509.ParsePKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(reflect.ValueOf(priv).MethodByName("Public").Call(nil)[0].Interface(), pub) {
		t.Errorf("%T is not the public half", pub)
	}
}

func TestGenerateNamesTheAlgorithmItRefuses(t *testing.T) {
	for _, a := range []string{"HS256", "RS512", "none", "es256", " EdDSA"} {
		if _, err := nks.Generate(a); err == nil || !strings.Contains(err.Error(), a) {
			t.Errorf("%q: %v", a, err)
		}
	}
}

func TestGenerateNeverRepeats(t *testing.T) {
	a, _ := nks.Generate("EdDSA")
	b, _ := nks.Generate("EdDSA")
	if *a.Root() == *b.Root() || bytes.Equal(a.Signing(), b.Signing()) {
		t.Error("two keys share a half")
	}
	if *a.Root() == [32]byte{} {
		t.Error("root of zeros")
	}
}

func TestPublicRefusesOtherKeys(t *testing.T) {
	short, _ := rsa.GenerateKey(rand.Reader, 1024)
	long, _ := rsa.GenerateKey(rand.Reader, 3072)
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	x25519, _ := ecdh.X25519().GenerateKey(rand.Reader)
	for _, key := range []any{short, long, p384, x25519} {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		refusedByPublic(t, der)
	}
	refusedByPublic(t, []byte("not DER"))
}

func refusedByPublic(t *testing.T, signing []byte) {
	t.Helper()
	m := materialOf(t, make([]byte, 32), signing)
	for _, a := range algorithms {
		if _, err := m.Public(a); !errors.Is(err, nks.ErrFormat) {
			t.Errorf("%x as %s: %v", signing[:min(len(signing), 16)], a, err)
		}
	}
}

func TestMaterialRoundTrips(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		root := rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "root")
		signing := rapid.SliceOfN(rapid.Byte(), 1, 4096).Draw(t, "signing")
		b := encodeMaterial(root, signing)
		m, err := nks.Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(m.Encode(), b) || !bytes.Equal(m.Root()[:], root) || !bytes.Equal(m.Signing(), signing) {
			t.Fatal("another material")
		}
		clear(b)
		if !bytes.Equal(m.Signing(), signing) {
			t.Fatal("shares memory with what it was decoded from")
		}
	})
}

func TestDecodeRefuses(t *testing.T) {
	root, good := make([]byte, 32), vectors(t)[0].Material
	cases := map[string][]byte{
		"nothing":            nil,
		"version 0":          append([]byte{0}, good[1:]...),
		"version 2":          append([]byte{2}, good[1:]...),
		"a byte more":        append(bytes.Clone(good), 0),
		"itself twice":       append(bytes.Clone(good), good...),
		"short root":         encodeMaterial(root[:31], []byte{1}),
		"long root":          encodeMaterial(append(root, 0), []byte{1}),
		"no signing key":     encodeMaterial(root, nil),
		"huge signing key":   encodeMaterial(root, make([]byte, 4097)),
		"length of 4 GiB":    append(encodeMaterial(root, nil)[:37], 0xff, 0xff, 0xff, 0xff, 1),
		"root of 4 GiB":      append([]byte{1, 0xff, 0xff, 0xff, 0xff}, root...),
		"file, not material": vectors(t)[0].Text,
	}
	for name, b := range cases {
		if _, err := nks.Decode(b); !errors.Is(err, nks.ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for n := range good {
		if _, err := nks.Decode(good[:n]); !errors.Is(err, nks.ErrFormat) {
			t.Errorf("prefix of %d: %v", n, err)
		}
	}
}

// TestCheckCoversEveryBit flips each bit of the material: what still decodes has
// another check value.
func TestCheckCoversEveryBit(t *testing.T) {
	v := vectors(t)[0]
	decoded := 0
	for i := range len(v.Material) * 8 {
		b := bytes.Clone(v.Material)
		b[i/8] ^= 1 << (i % 8)
		m, err := nks.Decode(b)
		if err != nil {
			continue
		}
		decoded++
		check := m.Check([16]byte(v.ID), v.Algorithm)
		if bytes.Equal(check[:], v.Check) {
			t.Errorf("bit %d does not matter", i)
		}
	}
	if want := (len(v.Root) + len(v.Signing)) * 8; decoded != want {
		t.Errorf("%d flips decode, want %d", decoded, want)
	}
}

func TestCheckCoversIDAndAlgorithm(t *testing.T) {
	v := vectors(t)[0]
	m := v.material(t)
	seen := map[[32]byte]bool{m.Check([16]byte(v.ID), v.Algorithm): true}
	for i := range 128 {
		id := [16]byte(v.ID)
		id[i/8] ^= 1 << (i % 8)
		seen[m.Check(id, v.Algorithm)] = true
	}
	for _, a := range []string{"", "RS256", "ES256", "EdDS", "EdDSAA"} {
		seen[m.Check([16]byte(v.ID), a)] = true
	}
	if want := 1 + 128 + 5; len(seen) != want {
		t.Errorf("%d check values, want %d", len(seen), want)
	}
}

// TestEveryFieldOfMaterial walks the fields, so that one added later is not
// forgotten: each must reach the check value and survive a copy and the way to
// disk and back.
func TestEveryFieldOfMaterial(t *testing.T) {
	v := vectors(t)[0]
	if n := reflect.TypeFor[nks.Material]().NumField(); n != 1 {
		t.Fatalf("Material has %d fields; all but the way to the secret escape this test", n)
	}
	for i := range v.material(t).Fields().NumField() {
		m := v.material(t)
		name := m.Fields().Type().Field(i).Name
		flip(t, m.Fields().Field(i))
		check := m.Check([16]byte(v.ID), v.Algorithm)
		if bytes.Equal(check[:], v.Check) {
			t.Errorf("the check value does not cover %s", name)
		}
		back, err := nks.Decode(m.Encode())
		if err != nil {
			t.Fatal(err)
		}
		if !same(m, back) {
			t.Errorf("%s is lost on the way to disk and back", name)
		}
		clone := m.Clone()
		if !same(m, clone) {
			t.Errorf("%s is lost in a clone", name)
		}
		flip(t, clone.Fields().Field(i))
		if !same(m, back) {
			t.Errorf("%s is shared with a clone", name)
		}
	}
}

func same(a, b *nks.Material) bool {
	return reflect.DeepEqual(a.Fields().Interface(), b.Fields().Interface())
}

// flip changes the last bit of a byte slice or byte array.
func flip(t *testing.T, v reflect.Value) {
	t.Helper()
	if k := v.Kind(); k != reflect.Slice && k != reflect.Array || v.Type().Elem().Kind() != reflect.Uint8 {
		t.Fatalf("teach the tests about fields of type %v", v.Type())
	}
	last := v.Index(v.Len() - 1)
	last.SetUint(last.Uint() ^ 1)
}

func TestWipeOverwrites(t *testing.T) {
	m, err := nks.Generate("EdDSA")
	if err != nil {
		t.Fatal(err)
	}
	clone := m.Clone()
	root, signing := m.Root(), m.Signing()
	m.Wipe()
	if *root != [32]byte{} || !bytes.Equal(signing, make([]byte, len(signing))) {
		t.Error("key bytes are left")
	}
	if *clone.Root() == [32]byte{} {
		t.Error("a clone was wiped too")
	}
	m.Wipe()
	(*nks.Material)(nil).Wipe()
	new(nks.Material).Wipe()
}

func TestWipedMaterialHandsOutNoZeros(t *testing.T) {
	m := vectors(t)[0].material(t)
	m.Wipe()
	for name, use := range map[string]func(){
		"Root":    func() { m.Root() },
		"Signing": func() { m.Signing() },
		"Encode":  func() { m.Encode() },
		"Check":   func() { m.Check([16]byte{}, "EdDSA") },
		"Public":  func() { m.Public("EdDSA") },
		"Clone":   func() { m.Clone() },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s of a wiped key went through", name)
				}
			}()
			use()
		}()
	}
}
