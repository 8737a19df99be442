package nks_test

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"example.com/keyring/internal/nks"
)

func TestDecodeNomadRefusesEveryPrefix(t *testing.T) {
	for _, f := range nomadFiles(t) {
		for n := range f.Text {
			if _, err := nks.DecodeNomad(f.Text[:n]); !errors.Is(err, nks.ErrFormat) {
				t.Fatalf("%s: prefix of %d: %v", f.File, n, err)
			}
		}
	}
}

// span is a part of a file, from one byte to before another.
type span struct{ from, to int }

func (s span) has(i int) bool { return s.from <= i && i < s.to }

// spanOf returns where the value of a member is, the first one after from.
func spanOf(t *testing.T, text, name string, from int) span {
	whole := member(t, text[from:], name)
	to := from + strings.Index(text[from:], whole) + len(whole)
	return span{to - len(whole) + len(name) + len(`"":`), to}
}

// unseen are the parts of a file of Nomad's that nothing authenticates, and whose damage nothing
// tells. None matters for the key; its ID is in the name of the file too.
func unseen(t *testing.T, f nomadFile) map[string]span {
	text := string(f.Text)
	parts := map[string]span{"Meta": spanOf(t, text, "Meta", 0), "KeyID": spanOf(t, text, "KeyID", 0)}
	if strings.Contains(text, `"Provider":`) {
		parts["Provider"] = spanOf(t, text, "Provider", 0)
	}
	if strings.Contains(text, `"aead.`) {
		id := spanOf(t, text, "ProviderID", 0)
		parts["name in ProviderID"] = span{id.from + len(`"aead.`), id.to}
	}
	if i := strings.Index(text, `"WrappedDEK"`); i > 0 {
		parts["key_info of the root key"] = spanOf(t, text, "key_info", i)
	}
	if i := strings.Index(text, `"WrappedRSAKey":{"`); i > 0 {
		parts["key_info of the RSA key"] = spanOf(t, text, "key_info", i)
	}
	return parts
}

// refusedOr reports whether b is refused. If not, the key in it is the one with these fields, or
// the test fails.
func refusedOr(t *testing.T, key [][]byte, what string, b []byte) (n *nks.Nomad, refused bool) {
	t.Helper()
	n, err := nks.DecodeNomad(b)
	if err == nil && n.Inline() && reflect.DeepEqual(n.Fields(), key) {
		return n, false // Open has nothing else to go by, and takes its time
	}
	if err == nil {
		_, _, err = n.Open()
	}
	if !errors.Is(err, nks.ErrFormat) {
		t.Fatalf("%s makes another key, or %v", what, err)
	}
	return nil, true
}

// oneOfEach is the first file of each form.
func oneOfEach(t *testing.T) (fs []nomadFile) {
	met := map[string]bool{}
	for _, f := range inlineNomad(t) {
		if !met[f.By] {
			fs = append(fs, f)
		}
		met[f.By] = true
	}
	return fs
}

// telling yields the places in a text that are not far inside of a long run of base64.
func telling(text []byte) iter.Seq[int] {
	const far = 40
	return func(yield func(int) bool) {
		for i := range text {
			run := !bytes.ContainsAny(text[max(0, i-far):min(i+far, len(text))], "\"{}:,.-")
			if !run && !yield(i) {
				return
			}
		}
	}
}

// TestNomadFlips flips each bit of each file: it is refused, or the key is the same. A flip in
// the ID of the key gives it another ID, and nothing else does.
func TestNomadFlips(t *testing.T) {
	for _, f := range oneOfEach(t) {
		key, parts, met := f.decode(t).Fields(), unseen(t, f), map[string]bool{}
		for i := range len(f.Text) * 8 {
			what := fmt.Sprintf("%s: bit %d, in %q,", f.File, i, f.Text[max(0, i/8-20):i/8+1])
			n, refused := refusedOr(t, key, what, flipped(f.Text, i))
			if refused {
				continue
			}
			known := false
			for part, at := range parts {
				if at.has(i / 8) {
					known, met[part] = true, true
				}
			}
			if !known || parts["KeyID"].has(i/8) != (n.ID != f.id()) {
				t.Errorf("%s goes unseen, ID %x", what, n.ID)
			}
		}
		if len(met) != len(parts) {
			t.Errorf("%s: of %v only %v can be damaged unseen", f.File, parts, slices.Sorted(maps.Keys(met)))
		}
	}
}

// TestNomadCharacters puts other characters in the place of each: the same holds.
func TestNomadCharacters(t *testing.T) {
	for _, f := range oneOfEach(t) {
		key := f.decode(t).Fields()
		for i := range telling(f.Text) {
			for _, by := range []string{"", `"`, `\`, "{", "}", ",", ":", " ", "0", "A", "=", `":`, `","`} {
				refusedOr(t, key, fmt.Sprintf("%s: %q at %d", f.File, by, i), splice(f.Text, i, i+1, by))
			}
		}
	}
}

// TestDecodeNomadAllocatesLittle feeds it bytes made to cost more than they weigh.
func TestDecodeNomadAllocatesLittle(t *testing.T) {
	text := string(nomadNamed(t, ".aead.east.").Text)
	fill := func(size int, old, unit string) []byte {
		room := strings.Repeat(unit, (size-len(text)-len(unit))/len(unit))
		return []byte(strings.Replace(text, old, old+room, 1))
	}
	for _, size := range []int{16 << 10, nks.MaxFile} {
		in := func(old, unit string) []byte { return fill(size, old, unit) }
		for name, b := range map[string][]byte{
			"a good file":               in("{", " "),
			"arrays":                    bytes.Repeat([]byte("["), size),
			"arrays in Meta":            in(`"Meta":`, "["),
			"objects in Meta":           in(`"Meta":`, `{"":`),
			"quotes":                    bytes.Repeat([]byte(`"`), size),
			"a string of quotes":        append([]byte(`{"`), bytes.Repeat([]byte(`\"`), size/2-1)...),
			"a name of quotes":          in(`{"Meta`, `\"`),
			"empty members":             in("{", `"":0,`),
			"members":                   in("{", `"member":0,`),
			"the same member":           in("{", `"KEK":"",`),
			"members of Meta":           in(`"Meta":{`, `"m":0,`),
			"members and spaces":        in("}", `"":0`+strings.Repeat(" ", 60)),
			"a long KEK":                in(`"KEK":"`, "AAAA"),
			"a long KeyID":              in(`"KeyID":"`, "-"),
			"a KeyID of escapes":        in(`"KeyID":"`, `\u0041`),
			"a long ProviderID":         in("aead.", "a"),
			"a ProviderID of dots":      in("aead.", "."),
			"a ProviderID of bad UTF-8": in("aead.", "\xff"),
			"a long ciphertext":         in(`"ciphertext":"`, "AAAA"),
			"a long time":               in(`"CreateTime":`, "1"),
			"client data":               in(`"key_info":`, `0,"client_data":`),
			"zeros":                     make([]byte, size),
			"eight times as much":       fill(8*size, "{", " "),
		} {
			used, err := allocated(func() error {
				nks.IsNomad(b)
				n, err := nks.DecodeNomad(b)
				if err == nil {
					_, _, err = n.Open()
				}
				return err
			})
			if limit := uint64(4*min(len(b), nks.MaxFile) + 64<<10); used > limit {
				t.Errorf("%s of %d bytes: %d bytes allocated: %v", name, len(b), used, err)
			}
			if err != nil && len(err.Error()) > 300 {
				t.Errorf("%s: an error of %d bytes", name, len(err.Error()))
			}
		}
	}
}
