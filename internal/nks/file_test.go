package nks_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"example.com/keyring/internal/nks"
)

// sumTail is the end of every file, from the Sum on.
const sumTail = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\"\n}\n"

// resum gives an altered file the Sum that fits it.
func resum(b []byte) []byte {
	head := b[:max(0, len(b)-len(sumTail))]
	sum := sha256.Sum256(append(bytes.Clone(head), "\"\n}\n"...))
	return fmt.Appendf(nil, "%s%x\"\n}\n", head, sum)
}

func sumOf(t testing.TB, b []byte) string {
	t.Helper()
	var f struct{ Sum string }
	if err := json.Unmarshal(b, &f); err != nil {
		t.Fatal(err)
	}
	return f.Sum
}

func encode(t testing.TB, f *nks.File) []byte {
	t.Helper()
	b, err := f.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func drawFile(t *rapid.T) *nks.File {
	f := &nks.File{
		Version:   rapid.IntRange(1, 2).Draw(t, "version"),
		ID:        [16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "id")),
		Algorithm: rapid.SampledFrom(algorithms).Draw(t, "algorithm"),
		Check:     [32]byte(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "check")),
		Created: time.Unix(
			rapid.Int64Range(-62167219200, 253402300799).Draw(t, "seconds"), // years 0 to 9999
			rapid.Int64Range(0, 999999999).Draw(t, "nanoseconds")).UTC(),
	}
	keks := rapid.SliceOfNDistinct(rapid.StringMatching(`[ -~]{1,128}`), 1, 16, rapid.ID[string]).Draw(t, "keks")
	for _, kek := range keks {
		c := rapid.SliceOfN(rapid.Byte(), 1, 3000).Draw(t, "ciphertext")
		f.Wrapped = append(f.Wrapped, nks.Wrapped{KEK: kek, Ciphertext: c})
	}
	if f.Version == 2 {
		f.MAC = [32]byte(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "mac"))
		f.Wrapped[0].Version = rapid.StringMatching(`[ -~]{0,128}`).Draw(t, "version of the KEK")
	}
	return f
}

func TestFileRoundTrips(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := drawFile(t)
		b, err := f.Encode()
		if err != nil {
			t.Fatal(err)
		}
		read := bytes.Clone(b)
		back, err := nks.DecodeFile(read)
		if err != nil {
			t.Fatal(err)
		}
		clear(read)
		if !reflect.DeepEqual(f, back) {
			t.Fatalf("\n%#v\n%#v", f, back)
		}
	})
}

// TestFileIsJSON: other tools can read it, whatever the names of the KEKs.
func TestFileIsJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := drawFile(t)
		b, err := f.Encode()
		if err != nil {
			t.Fatal(err)
		}
		var got struct {
			Version       int
			ID, Algorithm string
			Check         []byte
			Created       time.Time
			Wrapped       []struct {
				KEK, Version string
				Ciphertext   []byte
			}
			MAC []byte
			Sum string
		}
		d := json.NewDecoder(bytes.NewReader(b))
		d.DisallowUnknownFields()
		if err := d.Decode(&got); err != nil {
			t.Fatal(err)
		}
		if got.Version != f.Version || !bytes.Equal(got.MAC, f.MAC[:]) && f.Version > 1 || !got.Created.Equal(f.Created) || !bytes.Equal(got.Check, f.Check[:]) {
			t.Fatalf("%+v", got)
		}
		for i, w := range f.Wrapped {
			if got.Wrapped[i].KEK != w.KEK || got.Wrapped[i].Version != w.Version || !bytes.Equal(got.Wrapped[i].Ciphertext, w.Ciphertext) {
				t.Fatalf("entry %d is %+v", i, got.Wrapped[i])
			}
		}
	})
}

func TestCreatedIsWrittenInUTC(t *testing.T) {
	f := vectors(t)[0].file()
	want := encode(t, f)
	f.Created = f.Created.In(time.FixedZone("", -7*3600))
	equal(t, "file", encode(t, f), want)
}

func TestDecodeFileRefusesEveryPrefix(t *testing.T) {
	for _, v := range fileVectors(t) {
		for n := range v.Text {
			if _, err := nks.DecodeFile(v.Text[:n]); !errors.Is(err, nks.ErrFormat) {
				t.Fatalf("%s: prefix of %d: %v", v.File, n, err)
			}
		}
	}
}

func TestDecodeFileRefusesEveryBitFlip(t *testing.T) {
	for _, v := range fileVectors(t) {
		for i := range len(v.Text) * 8 {
			v.Text[i/8] ^= 1 << (i % 8)
			if _, err := nks.DecodeFile(v.Text); !errors.Is(err, nks.ErrFormat) {
				t.Fatalf("%s: bit %d: %v", v.File, i, err)
			}
			v.Text[i/8] ^= 1 << (i % 8)
		}
	}
}

// TestOneSpelling flips every bit and makes the Sum fit: what is still read is
// another content, and is written back as it was read.
func TestOneSpelling(t *testing.T) {
	for _, v := range append(vectors(t)[:2], vectors2(t)[:2]...) {
		read := 0
		for i := range (len(v.Text) - len(sumTail)) * 8 {
			b := bytes.Clone(v.Text)
			b[i/8] ^= 1 << (i % 8)
			b = resum(b)
			f, err := nks.DecodeFile(b)
			if err != nil {
				continue
			}
			read++
			equal(t, "file", encode(t, f), b)
			if reflect.DeepEqual(f, v.file()) {
				t.Errorf("%s: bit %d has no meaning", v.File, i)
			}
		}
		if read == 0 {
			t.Error("no flip was read, so nothing was tested")
		}
	}
}

// fileChange is what one change makes of a good file, which is refused then.
type fileChange struct{ name, old, new string }

// fileChanges are changes to a file that has this entry.
func fileChanges(entry string) []fileChange {
	return []fileChange{
		{"version 0", `"Version": 1`, `"Version": 0`},
		{"version 2 without a MAC", `"Version": 1`, `"Version": 2`},
		{"a MAC in version 1", `  "Sum"`, `  "MAC": "D9jb8W7KAaxpzUOzhB44wTCU+zhk27B1S3JJqj8R5Os=",` + "\n" + `  "Sum"`},
		{"the version of a KEK in version 1", `"inline",`, `"inline",` + "\n" + `      "Version": "1",`},
		{"version 1.0", `"Version": 1`, `"Version": 1.0`},
		{"version 01", `"Version": 1`, `"Version": 01`},
		{"version as a string", `"Version": 1`, `"Version": "1"`},
		{"no version", "  \"Version\": 1,\n", ""},
		{"member in lowercase", `"ID"`, `"id"`},
		{"member missing", `  "Algorithm": "EdDSA",` + "\n", ""},
		{"member twice", `  "Algorithm"`, `  "Algorithm": "EdDSA",` + "\n" + `  "Algorithm"`},
		{"member more", `  "Wrapped"`, `  "Note": "",` + "\n" + `  "Wrapped"`},
		{"CRLF", "\n", "\r\n"},
		{"tabs", "  ", "\t"},
		{"no space", `": `, `":`},
		{"space before the end", "\n}\n", "\n }\n"},
		{"byte order mark", "{\n  \"V", "\ufeff{\n  \"V"},
		{"ID in uppercase", "aabbccddeeff", "AABBCCDDEEFF"},
		{"ID without dashes", "00112233-4455-6677-8899-", "00112233445566778899"},
		{"ID in braces", `"00112233-4455-6677-8899-aabbccddeeff"`, `"{00112233-4455-6677-8899-aabbccddeeff}"`},
		{"unknown algorithm", "EdDSA", "HS256"},
		{"no algorithm", "EdDSA", ""},
		{"escape for a letter", "EdDSA", `EdDS\u0041`},
		{"check value of 31 bytes", "D9jb8W7KAaxpzUOzhB44wTCU+zhk27B1S3JJqj8R5Os=", "D9jb8W7KAaxpzUOzhB44wTCU+zhk27B1S3JJqj8R5A=="},
		{"check value of 33 bytes", "R5Os=", "R5OsA"},
		{"bits left over in base64", "R5Os=", "R5Ot="},
		{"base64 without padding", "/w==", "/w"},
		{"base64 in two lines", "8PHy", "8PHy\n"},
		{"base64 for URLs", "D9jb8W7KAaxpzUOzhB44wTCU+", "D9jb8W7KAaxpzUOzhB44wTCU-"},
		{"escaped slash", "8/T1", `8\/T1`},
		{"null ciphertext", `"8PHy8/T19vf4+fr7/P3+/w=="`, "null"},
		{"empty ciphertext", "8PHy8/T19vf4+fr7/P3+/w==", ""},
		{"time without nanoseconds", ".000000000Z", "Z"},
		{"time with fewer digits", ".000000000Z", ".000Z"},
		{"time with a comma", ".000000000Z", ",000000000Z"},
		{"time with an offset", ".000000000Z", ".000000000+00:00"},
		{"leap second", "04:05.", "04:60."},
		{"day that is not", "01-02T", "02-30T"},
		{"no entries", "[\n" + entry + "\n  ]", "[]"},
		{"null entries", "[\n" + entry + "\n  ]", "null"},
		{"the same KEK twice", entry, entry + ",\n" + entry},
		{"17 entries", entry, entries(entry, 17)},
		{"18 entries", entry, entries(entry, 18)},
		{"comma after the last entry", entry, entry + ",\n"},
		{"KEK without a name", `"inline"`, `""`},
		{"KEK of 129 bytes", "inline", strings.Repeat("x", 129)},
		{"KEK not in ASCII", "inline", "é"},
		{"KEK with a newline", "inline", "in\nline"},
		{"KEK with DEL", "inline", "in\x7fline"},
		{"KEK with an escape for a letter", "inline", `\u0069nline`},
		{"KEK with half an escape", "inline", `inline\`},
		{"KEK with another escape", "inline", `in\line`},
		{"sum missing", `"Sum"`, `"Som"`},
	}
}

// fileChanges2 are changes to a file of version 2.
var fileChanges2 = []fileChange{
	{"version 1 with a MAC", `"Version": 2`, `"Version": 1`},
	{"no MAC", `"MAC": "J09UM1DIXe4patG30zvmpu3PZ0XksATrA+w5i/oamHw=",` + "\n  ", ""},
	{"MAC of 31 bytes", "amHw=", "amA=="},
	{"MAC of no bytes", "J09UM1DIXe4patG30zvmpu3PZ0XksATrA+w5i/oamHw=", ""},
	{"bits left over in the MAC", "amHw=", "amHx="},
	{"MAC in front", `  "Wrapped"`, `  "MAC": "J09UM1DIXe4patG30zvmpu3PZ0XksATrA+w5i/oamHw=",` + "\n" + `  "Wrapped"`},
	{"an empty version of the KEK", `"inline",`, `"inline",` + "\n" + `      "Version": "",`},
	{"a version of the KEK as a number", `"inline",`, `"inline",` + "\n" + `      "Version": 1,`},
	{"a long version of the KEK", `"inline",`, `"inline",` + "\n" + `      "Version": "` + strings.Repeat("1", 129) + `",`},
	{"a version of the KEK that is not in ASCII", `"inline",`, `"inline",` + "\n" + `      "Version": "é",`},
	{"a version of the KEK before its name", `      "KEK"`, `      "Version": "1",` + "\n" + `      "KEK"`},
	{"a version of the KEK twice", `"inline",`, `"inline",` + strings.Repeat("\n"+`      "Version": "1",`, 2)},
}

// TestDecodeFileRefuses other spellings and contents, each under a Sum that fits.
func TestDecodeFileRefuses(t *testing.T) {
	text := string(vectors(t)[0].Text)
	entry := text[strings.Index(text, "    {\n"):strings.Index(text, "\n  ],")]
	refuses(t, text, fileChanges(entry))
	refuses(t, string(vectors2(t)[0].Text), fileChanges2)
}

// refuses wants every change of the text of a file refused.
func refuses(t *testing.T, text string, changes []fileChange) {
	t.Helper()
	for _, c := range changes {
		altered := strings.ReplaceAll(text, c.old, c.new)
		if altered == text {
			t.Errorf("%s: nothing altered", c.name)
		}
		if _, err := nks.DecodeFile(resum([]byte(altered))); !errors.Is(err, nks.ErrFormat) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// entries repeats an entry under n names.
func entries(entry string, n int) string {
	all := make([]string, n)
	for i := range all {
		all[i] = strings.Replace(entry, "inline", fmt.Sprint("inline", i), 1)
	}
	return strings.Join(all, ",\n")
}

func TestDecodeFileRefusesWhatFollowsTheEnd(t *testing.T) {
	good := vectors(t)[0].Text
	for _, more := range []string{"\n", " ", "{}", "\x00", string(good)} {
		if _, err := nks.DecodeFile(append(bytes.Clone(good), more...)); !errors.Is(err, nks.ErrFormat) {
			t.Errorf("%.10q: %v", more, err)
		}
	}
	sum := bytes.ToUpper(good[len(good)-len(sumTail):])
	if _, err := nks.DecodeFile(append(good[:len(good)-len(sumTail)], sum...)); !errors.Is(err, nks.ErrFormat) {
		t.Errorf("Sum in uppercase: %v", err)
	}
}

func TestUnknownVersionIsNamed(t *testing.T) {
	text := strings.Replace(string(vectors(t)[0].Text), "1", "27", 1)
	_, err := nks.DecodeFile([]byte(text))
	if !errors.Is(err, nks.ErrVersion) || !strings.Contains(err.Error(), "version 27") {
		t.Error(err)
	}
}

// TestUnknownAlgorithmIsOfANewerBuild: the file is left alone, as one of a newer version is.
func TestUnknownAlgorithmIsOfANewerBuild(t *testing.T) {
	text := bytes.Replace(vectors(t)[0].Text, []byte("EdDSA"), []byte("ML-DSA-65"), 1)
	_, err := nks.DecodeFile(resum(text))
	if !errors.Is(err, nks.ErrVersion) || !strings.Contains(err.Error(), "ML-DSA-65") {
		t.Error(err)
	}
}

func TestDamageIsCalledDamage(t *testing.T) {
	text := strings.Replace(string(vectors(t)[0].Text), "EdDSA", "EdDSB", 1)
	_, err := nks.DecodeFile([]byte(text))
	if !errors.Is(err, nks.ErrFormat) || !strings.Contains(err.Error(), "damaged") {
		t.Error(err)
	}
}

func TestEncodeRefusesWhatDecodeFileWould(t *testing.T) {
	for name, alter := range map[string]func(f *nks.File){
		"no algorithm":      func(f *nks.File) { f.Algorithm = "" },
		"unknown algorithm": func(f *nks.File) { f.Algorithm = "PS256" },
		"year -1":           func(f *nks.File) { f.Created = time.Date(-1, 1, 1, 0, 0, 0, 0, time.UTC) },
		"year 10000":        func(f *nks.File) { f.Created = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) },
		"no entries":        func(f *nks.File) { f.Wrapped = nil },
		"17 entries":        func(f *nks.File) { f.Wrapped = wrappedUnder(17) },
		"no name":           func(f *nks.File) { f.Wrapped[0].KEK = "" },
		"long name":         func(f *nks.File) { f.Wrapped[0].KEK = strings.Repeat("k", 129) },
		"newline in a name": func(f *nks.File) { f.Wrapped[0].KEK = "a\n" },
		"name not in ASCII": func(f *nks.File) { f.Wrapped[0].KEK = "clé" },
		"name twice":        func(f *nks.File) { f.Wrapped = append(f.Wrapped, f.Wrapped[0]) },
		"no ciphertext":     func(f *nks.File) { f.Wrapped[0].Ciphertext = nil },
		"too large":         func(f *nks.File) { f.Wrapped[0].Ciphertext = make([]byte, nks.MaxFile*3/4) },
		"version -1":        func(f *nks.File) { f.Version = -1 },
		"version 3":         func(f *nks.File) { f.Version = 3 },
		"a MAC":             func(f *nks.File) { f.MAC[31] = 1 },
		"version of a KEK":  func(f *nks.File) { f.Wrapped[0].Version = "1" },
		"newline in one":    func(f *nks.File) { f.Version, f.Wrapped[0].Version = 2, "1\n" },
	} {
		f := vectors(t)[0].file()
		alter(f)
		if _, err := f.Encode(); !errors.Is(err, nks.ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func wrappedUnder(n int) (ws []nks.Wrapped) {
	for i := range n {
		ws = append(ws, nks.Wrapped{KEK: fmt.Sprint("kek", i), Ciphertext: []byte{1}})
	}
	return ws
}

func TestSixteenEntriesAndTheLargestFile(t *testing.T) {
	f := vectors(t)[0].file()
	f.Wrapped = wrappedUnder(16)
	base := len(encode(t, f))
	f.Wrapped[7].Ciphertext = make([]byte, (nks.MaxFile-base)/4*3+3)
	b := encode(t, f)
	if len(b) > nks.MaxFile || len(b) < nks.MaxFile-4 {
		t.Fatalf("%d bytes", len(b))
	}
	back, err := nks.DecodeFile(b)
	if err != nil || !reflect.DeepEqual(f, back) {
		t.Fatal(err)
	}
}

// leaf is a way to change one field of a File.
type leaf struct {
	path   string
	change func(*nks.File)
}

// leaves walks the fields of a File, down to those of its first entry in Wrapped.
func leaves(t *testing.T) (all []leaf) {
	for _, field := range reflect.VisibleFields(reflect.TypeFor[nks.File]()) {
		if field.Name != "Wrapped" {
			all = append(all, leaf{field.Name, func(f *nks.File) {
				change(t, field.Name, reflect.ValueOf(f).Elem().FieldByIndex(field.Index))
			}})
		}
	}
	for _, field := range reflect.VisibleFields(reflect.TypeFor[nks.Wrapped]()) {
		path := "Wrapped." + field.Name
		all = append(all, leaf{path, func(f *nks.File) {
			change(t, path, reflect.ValueOf(&f.Wrapped[0]).Elem().FieldByIndex(field.Index))
		}})
	}
	return all
}

func change(t *testing.T, path string, v reflect.Value) {
	switch p := v.Addr().Interface().(type) {
	case *string:
		*p = map[string]string{"Algorithm": "ES256", "Wrapped.KEK": "outlines", "Wrapped.Version": "7"}[path]
	case *int:
		*p = 1 // and no MAC: see TestEveryFieldOfFile
	case *time.Time:
		*p = p.Add(1)
	default:
		flip(t, v)
	}
}

// TestEveryFieldOfFile walks the fields, so that one added later is not forgotten:
// each must reach the Sum and the MAC and survive the way to disk and back, and a KEK binds
// those listed here and no others.
func TestEveryFieldOfFile(t *testing.T) {
	v := vectors2(t)[0]
	m := v.material(t)
	bound := map[string]bool{"ID": true, "Algorithm": true, "Check": true}
	for _, l := range leaves(t) {
		f := v.file()
		if l.change(f); f.Version == 1 {
			f.MAC = [32]byte{}
		}
		if reflect.DeepEqual(f, v.file()) {
			t.Fatalf("%s did not change", l.path)
		}
		b := encode(t, f)
		if sumOf(t, b) == sumOf(t, v.Text) {
			t.Errorf("the Sum does not cover %s", l.path)
		}
		if back, err := nks.DecodeFile(b); err != nil || !reflect.DeepEqual(f, back) {
			t.Errorf("%s is lost on the way to disk and back: %v", l.path, err)
		}
		if mac := m.MAC(f); l.path != "MAC" && l.path != "Version" && mac == [32]byte(v.MAC) {
			t.Errorf("the MAC does not cover %s", l.path)
		}
		if m.Authentic(f) {
			t.Errorf("a file with another %s is authentic", l.path)
		}
		if changed := !bytes.Equal(f.AAD(), v.AAD); changed != bound[l.path] {
			t.Errorf("changing %s changes the AAD: %v", l.path, changed)
		}
	}
}

// TestDecodeFileAllocatesLittle feeds it megabytes made to cost more than they weigh.
func TestDecodeFileAllocatesLittle(t *testing.T) {
	good := vectors(t)[0]
	f := good.file()
	f.Wrapped[0].Ciphertext = make([]byte, 700_000)
	text := string(good.Text)
	entry := text[strings.Index(text, "    {\n"):strings.Index(text, "\n  ],")]
	fill := func(size int, old, unit string) []byte {
		room := strings.Repeat(unit, (size-len(text)-len(unit))/len(unit))
		return resum([]byte(strings.Replace(text, old, old+room, 1)))
	}
	in := func(old, unit string) []byte { return fill(nks.MaxFile, old, unit) }
	for name, b := range map[string][]byte{
		"a good file":       encode(t, f),
		"entries":           in(entry, ",\n"+entry),
		"empty entries":     in(entry, ",\n    {\n      \"KEK\": \"\",\n      \"Ciphertext\": \"\"\n    }"),
		"empty objects":     in("[\n", "{},"),
		"arrays":            in("[\n", "["),
		"escapes in a name": in("inline", `\\`),
		"quotes in a name":  in("inline", `\"`),
		"a long name":       in("inline", "x"),
		"a long ID":         in("aabbccddeeff", "0"),
		"dashes in an ID":   in("aabbccddeeff", "-"),
		"a long algorithm":  in("EdDSA", "A"),
		"a long time":       in(".000000000", "0"),
		"a long check":      in("D9jb", "AAAA"),
		"a long version":    in(`"Version": 1`, "1"),
		"zeros":             make([]byte, nks.MaxFile),
		"8 MiB":             fill(8*nks.MaxFile, "8PHy", "8PHy"),
	} {
		used, err := allocated(func() error { _, err := nks.DecodeFile(b); return err })
		if limit := uint64(6*min(len(b), nks.MaxFile) + 32<<10); used > limit {
			t.Errorf("%s: %d bytes allocated for %d: %v", name, used, len(b), err)
		}
		if err != nil && len(err.Error()) > 300 {
			t.Errorf("%s: an error of %d bytes", name, len(err.Error()))
		}
	}
}

func allocated(f func() error) (uint64, error) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	err := f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc, err
}

func BenchmarkDecodeFile(b *testing.B) {
	text := vectors(b)[2].Text
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := nks.DecodeFile(text); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCheck(b *testing.B) {
	v := vectors(b)[2]
	m := v.material(b)
	for b.Loop() {
		m.Check([16]byte(v.ID), v.Algorithm)
	}
}
