package bounded_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"example.com/keyring/internal/bounded"
	"example.com/keyring/internal/bounded/boundedtest"
)

type id [2]byte

func (i id) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%04x", i[:]), nil }
func (i *id) UnmarshalText(b []byte) error {
	_, err := fmt.Sscanf(string(b), "%02x%02x", &i[0], &i[1])
	return err
}

type inner struct {
	ID   id
	Name string `json:"name,omitempty"`
}

// Inner is embedded, and goes by the bounds of where it is.
type Inner struct {
	Refs []string
}

type outer struct {
	Version int             `json:"version"`
	List    []inner         `json:"list" bound:"elements=3,bytes=4"`
	Bytes   []byte          `json:"bytes" bound:"bytes=5"`
	Raw     json.RawMessage `json:"raw" bound:"bytes=8"`
	Pairs   map[string]int  `json:"pairs" bound:"elements=2,bytes=3"`
	Grid    [][]uint        `json:"grid" bound:"elements=2"`
	Time    time.Time       `json:"time,omitzero"`
	Least   *inner          `json:"least" bound:"bytes=1"`
	On      bool            `json:"on"`
	Inner   `bound:"elements=1,bytes=2"`
	Hidden  any `json:"-"`
	hidden  any //lint:ignore U1000 it is there for JSON to pass over
}

var outerType = bounded.For[outer](1 << 20)

func TestDecodeTakesWhatIsWithinTheBounds(t *testing.T) {
	want := outer{
		Version: 1, List: []inner{{id{1, 2}, "four"}, {}, {}}, Bytes: []byte("fives"), Raw: json.RawMessage(`{"a":[1]}`)[:0],
		Pairs: map[string]int{"abc": 1, "d": 2}, Grid: [][]uint{{1, 2}, {}}, Time: time.Unix(1, 0).UTC(),
		Least: &inner{Name: "é"[:0]}, On: true, Inner: Inner{[]string{"ab"}},
	}
	want.Raw = json.RawMessage(`[1,2,33]`)
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := outerType.Decode(b); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%s\n%+v, %v", b, got, err)
	}
	var spaced bytes.Buffer
	if err := json.Indent(&spaced, b, " ", "\t"); err != nil {
		t.Fatal(err)
	}
	want.Raw = nil
	got, err := outerType.Decode(bytes.Replace(spaced.Bytes(), []byte(`"raw": [`), []byte(`"raw": null, "on": [`), 1))
	if err == nil {
		t.Errorf("a list is taken for a boolean: %+v", got)
	}
}

func TestDecodeRefusesWhatIsBeyond(t *testing.T) {
	for _, c := range []struct {
		in   string
		want error
	}{
		{`{"list":[{},{},{},{}]}`, bounded.ErrBound},
		{`{"list":[null,null,null,null]}`, bounded.ErrBound},
		{`{"list":[{"name":"fives"}]}`, bounded.ErrBound},
		{`{"list":[{"name":"aé\u00e9"}]}`, bounded.ErrBound},
		{`{"list":[{"name":"\u0061\u0061\u0061\u0061"}]}`, nil},
		{`{"list":[{"name":"\n\n\n\n\n"}]}`, bounded.ErrBound},
		{`{"list":[{"name":"\ud83d\ude00"}]}`, bounded.ErrBound}, // counted as two
		{`{"bytes":"aaaaaaaaaaaa"}`, bounded.ErrBound},
		{`{"bytes":[1,2]}`, bounded.ErrForm},
		{`{"raw":[1,2,3,4]}`, bounded.ErrBound},
		{`{"pairs":{"a":1,"b":2,"c":3}}`, bounded.ErrBound},
		{`{"pairs":{"long":1}}`, bounded.ErrBound},
		{`{"grid":[[1,2,3]]}`, bounded.ErrBound},
		{`{"grid":[[],[],[]]}`, bounded.ErrBound},
		{`{"least":{"name":"ab"}}`, bounded.ErrBound},
		{`{"least":{"ID":"` + strings.Repeat("0", 9) + `"}}`, bounded.ErrBound},
		{`{"Refs":["a","b"]}`, bounded.ErrBound},
		{`{"Refs":["abc"]}`, bounded.ErrBound},
		{`{"list":[],"list":[]}`, bounded.ErrForm},
		{`{"LIST":[]}`, bounded.ErrForm},
		{`{"li\u0073t":[]}`, bounded.ErrForm},
		{`{"more":[]}`, bounded.ErrForm},
		{`{"Hidden":1}`, bounded.ErrForm},
		{`{"hidden":1}`, bounded.ErrForm},
		{`{"list":{}}`, bounded.ErrForm},
		{`{"version":"1"}`, bounded.ErrForm},
		{`{"version":1.5}`, bounded.ErrForm},
		{`[]`, bounded.ErrForm},
		{`{} {}`, bounded.ErrForm},
		{`{"list":[`, bounded.ErrForm},
		{"", bounded.ErrForm},
		{"{\"list\":[{\"name\":\"\xff\"}]}", bounded.ErrForm},
	} {
		if _, err := outerType.Decode([]byte(c.in)); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.in, err, c.want)
		}
	}
	if _, err := bounded.For[outer](10).Decode([]byte(`{"version":1}`)); !errors.Is(err, bounded.ErrBound) {
		t.Errorf("more bytes than the type may have: %v", err)
	}
}

// TestDecodeKnownPassesOverWhatIsNew: but not over what encoding/json would take for a member.
func TestDecodeKnownPassesOverWhatIsNew(t *testing.T) {
	for in, ok := range map[string]bool{
		`{"new":[{},{},{},{},{},"]"],"version":7}`:        true,
		`{"new":{"list":[[],{"a":"\"}"}]} , "version":7}`: true,
		`{"new":-1.5e3,"version":7}`:                      true,
		`{"LIST":[{},{},{},{}],"version":7}`:              false,
		`{"l\u0069st":[{},{},{},{}],"version":7}`:         false,
		`{"ver\u017fion":7}`:                              false,
		"{\"ver\u017fion\":7}":                            false,
		`{"version":7,"version":7}`:                       false,
	} {
		got, err := outerType.DecodeKnown([]byte(in))
		if (err == nil) != ok || ok && got.Version != 7 {
			t.Errorf("%s: %+v, %v", in, got, err)
		}
	}
}

func TestForPanicsWithoutABound(t *testing.T) {
	type loop struct {
		Next *struct{ Again []string }
	}
	for name, of := range map[string]func(){
		"list":  func() { bounded.For[[]int](9) },
		"text":  func() { bounded.For[struct{ S string }](9) },
		"bytes": func() { bounded.For[struct{ B []byte }](9) },
		"raw":   func() { bounded.For[struct{ R json.RawMessage }](9) },
		"keys": func() {
			bounded.For[struct {
				M map[string]int `bound:"elements=1"`
			}](9)
		},
		"elements": func() {
			bounded.For[struct {
				L []string `bound:"bytes=1"`
			}](9)
		},
		"below":     func() { bounded.For[struct{ P *loop }](9) },
		"anything":  func() { bounded.For[struct{ A any }](9) },
		"by itself": func() { bounded.For[struct{ N json.Marshaler }](9) },
		"tag": func() {
			bounded.For[struct {
				S string `bound:"byte=1"`
			}](9)
		},
		"number": func() {
			bounded.For[struct {
				S string `bound:"bytes=none"`
			}](9)
		},
		"quoted": func() {
			bounded.For[struct {
				N int `json:",string"`
			}](9)
		},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			of()
		}()
	}
}

func TestMemoryIsBoundedBeforeItIsAllocated(t *testing.T) {
	for name, in := range map[string]string{
		"objects": `{"list":[{}` + strings.Repeat(`,{}`, 300000) + `]}`,
		"nulls":   `{"list":[null` + strings.Repeat(`,null`, 200000) + `]}`,
		"nested":  `{"raw":` + strings.Repeat(`[`, 9000) + strings.Repeat(`]`, 9000) + `}`,
		"deep":    strings.Repeat(`[`, 1<<20),
		"text":    `{"list":[{"name":"` + strings.Repeat("a", 1<<20-30) + `"}]}`,
		"pairs":   `{"pairs":{"a":1` + strings.Repeat(`,"a":1`, 100000) + `}}`,
		"twice":   `{"list":[{},{},{}]` + strings.Repeat(`,"list":[{},{},{}]`, 50000) + `}`,
	} {
		b := []byte(in)
		boundedtest.Memory(t, 0, 1<<20, 0, func() {
			if _, err := outerType.Decode(b); err == nil {
				t.Errorf("%s: decoded", name)
			}
		})
	}
}

func TestGunzipIsBounded(t *testing.T) {
	pack := func(text string) []byte {
		var b bytes.Buffer
		z, _ := gzip.NewWriterLevel(&b, gzip.BestCompression)
		z.Write([]byte(text))
		z.Close()
		return b.Bytes()
	}
	small := strings.Repeat("a", 64<<10)
	if b, err := bounded.Gunzip(pack(small), 1<<20); err != nil || string(b) != small {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if _, err := bounded.Gunzip(pack(small), 1000); !errors.Is(err, bounded.ErrBound) {
		t.Error(err)
	}
	if _, err := bounded.Gunzip(pack(small)[:40], 1<<20); !errors.Is(err, bounded.ErrForm) {
		t.Error(err)
	}
	bomb := pack(strings.Repeat("a", 32<<20))
	boundedtest.Memory(t, len(bomb), 1<<20, 5*64, func() {
		if _, err := bounded.Gunzip(bomb, 64<<20); !errors.Is(err, bounded.ErrBound) {
			t.Error(err)
		}
	})
}

// FuzzDecode: what is taken is within the bounds, and costs as much.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"version":1,"list":[{"ID":"0102","name":"four"}],"bytes":"YQ==","raw":[1],"pairs":{"a":1},"grid":[[1]]}`))
	f.Add([]byte(`{"time":"2026-01-02T03:04:05Z","least":{"ID":"0000"},"on":true,"Refs":["ab"],"new":[{"a":"\"]"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var v outer
		var err error
		boundedtest.Memory(t, len(b), 64<<10, 16, func() { v, err = outerType.DecodeKnown(b) })
		if err != nil {
			return
		}
		if len(v.List) > 3 || len(v.Bytes) > 5 || len(v.Raw) > 8 || len(v.Pairs) > 2 || len(v.Grid) > 2 || len(v.Refs) > 1 {
			t.Errorf("beyond the bounds: %+v", v)
		}
		for _, i := range v.List {
			if len(i.Name) > 4 {
				t.Errorf("name %q", i.Name)
			}
		}
		var plain outer
		if err := json.Unmarshal(b, &plain); err != nil || !reflect.DeepEqual(plain, v) {
			t.Errorf("encoding/json reads %+v, %v", plain, err)
		}
	})
}

// TestElementsAreCountedInAll: lists within lists multiply.
func TestElementsAreCountedInAll(t *testing.T) {
	type lists struct {
		List [][]int `bound:"elements=1000"`
	}
	of := bounded.For[lists](1 << 20)
	row := "[0" + strings.Repeat(",0", 510) + "]" // with itself 512 elements
	rows := func(n int) []byte { return []byte(`{"List":[` + row + strings.Repeat(","+row, n-1) + `]}`) }
	if _, err := of.Decode(rows(bounded.MaxElements / 512)); err != nil {
		t.Error(err)
	}
	if _, err := of.Decode(rows(bounded.MaxElements/512 + 1)); !errors.Is(err, bounded.ErrBound) {
		t.Errorf("more in all: %v", err)
	}
}

// TestGunzipTakesOneMemberAlone: empty ones that follow would make room for what the first becomes.
func TestGunzipTakesOneMemberAlone(t *testing.T) {
	pack := func(text string) []byte {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		z.Write([]byte(text))
		z.Close()
		return b.Bytes()
	}
	for name, tail := range map[string][]byte{"empty": pack(""), "another": pack("b"), "garbage": []byte("b")} {
		if _, err := bounded.Gunzip(append(pack("a"), tail...), 1000); !errors.Is(err, bounded.ErrForm) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
