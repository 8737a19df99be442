package nks_test

import (
	"bytes"
	"encoding/base64"
	"encoding/gob"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"example.com/keyring/internal/nks"
)

// Ways to hold a Material. fmt calls no methods on what lies in unexported fields.
type (
	exported   struct{ M nks.Material }
	unexported struct{ m nks.Material }
	embedded   struct{ nks.Material }
	embeddedP  struct{ *nks.Material }
	pointer    struct{ m *nks.Material }
	naked      struct{ root [32]byte }
	nakedList  struct{ Root []byte }
	deep       struct {
		list []unexported
		keys map[string]*unexported
		any  any
	}
)

func holders(m *nks.Material) map[string]any {
	return map[string]any{
		"pointer":           m,
		"value":             *m,
		"pointer pointer":   &m,
		"exported field":    exported{*m},
		"unexported field":  unexported{*m},
		"pointer to struct": &unexported{*m},
		"embedded":          embedded{*m},
		"embedded pointer":  embeddedP{m},
		"field with *":      pointer{m},
		"slice":             []nks.Material{*m},
		"slice of pointers": []*nks.Material{m},
		"array":             [1]unexported{{*m}},
		"map":               map[string]nks.Material{"k": *m},
		"map key":           map[*nks.Material]int{m: 1},
		"any":               []any{m, *m, unexported{*m}},
		"deep":              deep{[]unexported{{*m}}, map[string]*unexported{"k": {*m}}, unexported{*m}},
		"in an error":       fmt.Errorf("load %v: %w", m, errors.New("no")),
	}
}

// needles are what the printing verbs and the encodings would show of a secret: each
// run of six bytes, in each rendering.
type needles []string

func needlesOf(secrets ...[]byte) (all needles) {
	for _, s := range secrets {
		for i := range len(s) - 5 {
			all = append(all, renderings(s[i:i+6])...)
		}
	}
	return all
}

func renderings(b []byte) []string {
	list := strings.Trim(fmt.Sprint(b), "[]")
	return []string{
		string(b),
		strings.Trim(fmt.Sprintf("%q", b), `"`),
		hex.EncodeToString(b),
		strings.ToUpper(hex.EncodeToString(b)),
		fmt.Sprintf("% x", b),
		fmt.Sprintf("% X", b),
		list,
		strings.ReplaceAll(list, " ", ","),
		strings.Trim(fmt.Sprintf("%o", b), "[]"),
		strings.Trim(fmt.Sprintf("%b", b), "[]"),
		strings.Trim(fmt.Sprintf("%#v", b), "[]byte{}"),
		base64.StdEncoding.EncodeToString(b),
		base64.URLEncoding.EncodeToString(b),
	}
}

func (n needles) in(out string) bool {
	return slices.ContainsFunc(n, func(needle string) bool { return strings.Contains(out, needle) })
}

func (n needles) mustNotBeIn(t *testing.T, what, out string) {
	t.Helper()
	if n.in(out) {
		t.Errorf("%s shows key bytes: %.200q", what, out)
	}
}

// distinctive returns material whose root also shows where only text is printed.
func distinctive(t testing.TB) *nks.Material {
	return materialOf(t, []byte("0aZ!1bY@2cX#3dW$4eV%5fU^6gT*7hS+"), vectors(t)[0].Signing)
}

// eachFormat calls f with every verb under every flag, and with mistakes that make
// fmt skip the methods of its arguments.
func eachFormat(f func(format string)) {
	for verb := 'A'; verb <= 'z'; verb++ {
		for _, flags := range []string{"", "+", "#", " ", "0", "-", "# ", "+#", "80", ".3"} {
			f("%" + flags + string(verb))
		}
	}
	for _, format := range []string{"", "%", "%!", "%z", "%[1]p", "%[2]*[1]d", "%*d", "%.*d", "%[5]d", "%p %v"} {
		f(format)
	}
}

func TestMaterialNeverPrints(t *testing.T) {
	m := distinctive(t)
	secret := needlesOf(m.Root()[:], m.Signing())
	for name, h := range holders(m) {
		eachFormat(func(format string) {
			secret.mustNotBeIn(t, name+" as "+format, fmt.Sprintf(format, h))
			secret.mustNotBeIn(t, name+" twice as "+format, fmt.Sprintf(format, h, h))
		})
		secret.mustNotBeIn(t, name+" in Sprintln", fmt.Sprintln(h))
	}
}

// TestTheSearchFindsWhatPrints is why the tests around it mean something.
func TestTheSearchFindsWhatPrints(t *testing.T) {
	m := distinctive(t)
	secret := needlesOf(m.Root()[:])
	for _, format := range []string{"%v", "%+v", "%#v", "%x", "%X", "% x", "%s", "%q", "%d", "%o", "%b", "%p"} {
		if out := fmt.Sprintf(format, naked{*m.Root()}); !secret.in(out) {
			t.Errorf("not found in %s: %.200q", format, out)
		}
	}
	for encoding, marshal := range encodings {
		out, err := marshal(nakedList{m.Root()[:]})
		if err != nil || !secret.in(string(out)) {
			t.Errorf("not found in %s: %.200q, %v", encoding, out, err)
		}
	}
}

var encodings = map[string]func(any) ([]byte, error){
	"JSON": json.Marshal,
	"XML":  xml.Marshal,
	"gob": func(v any) ([]byte, error) {
		var b bytes.Buffer
		err := gob.NewEncoder(&b).Encode(v)
		return b.Bytes(), err
	},
	"slog text": func(v any) ([]byte, error) {
		var b bytes.Buffer
		slog.New(slog.NewTextHandler(&b, nil)).Info("key", "key", v)
		return b.Bytes(), nil
	},
	"slog JSON": func(v any) ([]byte, error) {
		var b bytes.Buffer
		slog.New(slog.NewJSONHandler(&b, nil)).Info("key", "key", v)
		return b.Bytes(), nil
	},
}

func TestMaterialNeverMarshals(t *testing.T) {
	m := distinctive(t)
	secret := needlesOf(m.Root()[:], m.Signing())
	for name, h := range holders(m) {
		for encoding, marshal := range encodings {
			out, err := marshal(h)
			secret.mustNotBeIn(t, name+" in "+encoding, fmt.Sprint(string(out), err))
		}
	}
}

func TestMaterialSaysThatItIsRedacted(t *testing.T) {
	const want = "nks.Material(redacted)"
	m := distinctive(t)
	text, _ := m.MarshalText()
	js, _ := json.Marshal(m)
	for _, got := range []string{
		fmt.Sprint(m), fmt.Sprintf("%+v", *m), fmt.Sprintf("%#v", m), fmt.Sprintf("%x", m),
		m.String(), m.GoString(), string(text), strings.Trim(string(js), `"`),
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestWrappedBytesNeverPrint(t *testing.T) {
	f := vectors(t)[1].file()
	w := f.Wrapped[3]
	wrapped := needlesOf(w.Ciphertext)
	for name, h := range map[string]any{"entry": w, "entries": f.Wrapped, "file": f, "file by value": *f} {
		for _, format := range []string{"%v", "%+v", "%#v", "%x", "%s", "%q", "%d"} {
			wrapped.mustNotBeIn(t, name+" as "+format, fmt.Sprintf(format, h))
		}
	}
}

// Ways to hold a Nomad.
type (
	nomadField   struct{ n nks.Nomad }
	nomadPointer struct{ n *nks.Nomad }
)

func TestNomadNeverPrints(t *testing.T) {
	for _, f := range inlineNomad(t)[:1] {
		n := f.decode(t)
		hidden := needlesOf(n.Fields()...)
		for name, h := range map[string]any{
			"pointer": n, "value": *n, "field": nomadField{*n}, "pointer in a field": nomadPointer{n},
			"list": []*nks.Nomad{n}, "map": map[string]nks.Nomad{"k": *n}, "any": []any{*n, nomadField{*n}},
		} {
			eachFormat(func(format string) {
				hidden.mustNotBeIn(t, name+" as "+format, fmt.Sprintf(format, h))
			})
			for encoding, marshal := range encodings {
				out, err := marshal(h)
				hidden.mustNotBeIn(t, name+" in "+encoding, fmt.Sprint(string(out), err))
			}
		}
		want := fmt.Sprintf("{ID:%s Provider:%q Inline:true}", f.ID, f.Provider)
		if got := fmt.Sprintf("%+v", n); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// TestNomadErrorsQuoteNothing damages files in every place.
func TestNomadErrorsQuoteNothing(t *testing.T) {
	for _, f := range oneOfEach(t) {
		hidden := needlesOf(f.decode(t).Fields()[0]) // the KEK
		for i := range telling(f.Text) {
			for _, damaged := range [][]byte{f.Text[:i], splice(f.Text, i, i+1, ""), splice(f.Text, i, i, "A"), splice(f.Text, i, i, `"`)} {
				n, err := nks.DecodeNomad(damaged)
				if err == nil {
					_, _, err = n.Open()
				}
				if err != nil {
					hidden.mustNotBeIn(t, fmt.Sprint("damage at ", i), err.Error())
				}
			}
		}
	}
}

// TestErrorsQuoteNothing damages files and material in every place, with a Sum that
// fits so that the parser gets to see the damage.
func TestErrorsQuoteNothing(t *testing.T) {
	v := vectors(t)[1]
	wrapped := needlesOf(v.Wrapped[3].Ciphertext)
	for n := range len(v.Text) - len(sumTail) {
		for _, damaged := range [][]byte{v.Text[:n], resum(splice(v.Text, n, n+1, "")), resum(splice(v.Text, n, n, "\x00"))} {
			if _, err := nks.DecodeFile(damaged); err != nil {
				wrapped.mustNotBeIn(t, fmt.Sprint("damage at ", n), err.Error())
			}
		}
	}
	secret := needlesOf(v.Root, v.Signing)
	for n := range v.Material {
		for _, damaged := range [][]byte{v.Material[:n], splice(v.Material, n, n+1, ""), v.Material[n:]} {
			if _, err := nks.Decode(damaged); err != nil {
				secret.mustNotBeIn(t, fmt.Sprint("damage at ", n), err.Error())
			}
		}
	}
	_, err := materialOf(t, v.Root, v.Signing[:len(v.Signing)-1]).Public(v.Algorithm)
	secret.mustNotBeIn(t, "Public", err.Error())
}

// splice returns b with b[i:j] replaced.
func splice(b []byte, i, j int, by string) []byte {
	return append(append(bytes.Clone(b[:i]), by...), b[j:]...)
}
