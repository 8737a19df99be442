package strictjson_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"example.com/keyring/internal/strictjson"
)

func TestObjectsThatAreTaken(t *testing.T) {
	many := make([]string, 3000)
	for i := range many {
		many[i] = fmt.Sprintf(`"m%d":%d`, i, i)
	}
	for _, text := range []string{
		`{}`, ` { } `, "\t{\r\n}\n", `{"":0}`, `{"a":1,"b":"x","c":null,"d":true,"e":false}`,
		`{"a":{"a":{"a":[]}}}`, `{"a":[{"b":1},{"b":2}]}`, `{"a":[1,[2,[3]]] , "b" : [ ] }`,
		`{"a":1.7976931348623157e308,"b":-1.7976931348623157e308,"c":1e-400,"d":[` + strings.Repeat("9", 308) + `]}`,
		`{"a":0,"b":-0,"c":1.5,"d":-12e-3,"e":1E+10,"f":0.0e0}`,
		`{"é":"日本","\u00c9x":"\ud83d\ude00\n\"\\\/"}`, `{"a\u0062":1,"b":2}`,
		`{"a":` + strings.Repeat(`[`, 63) + strings.Repeat(`]`, 63) + `}`,
		`{` + strings.Join(many, ",") + `}`,
	} {
		var want map[string]json.RawMessage
		if err := json.Unmarshal([]byte(text), &want); err != nil {
			t.Fatalf("%.80s: %v", text, err)
		}
		got := map[string]json.RawMessage{}
		if err := strictjson.Object([]byte(text), 64, func(name, value []byte) error {
			got[string(name)] = bytes.Clone(value)
			return nil
		}); err != nil {
			t.Errorf("%.80s: %v", text, err)
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%.80s: %v", text, got)
		}
	}
}

func TestObjectsThatAreRefused(t *testing.T) {
	many := make([]string, 20)
	for i := range many {
		many[i] = fmt.Sprintf(`"m%d":%d`, i, i)
	}
	for _, text := range []string{
		``, ` `, `null`, `1`, `"a"`, `[]`, `[{}]`, `true`, `{`, `}`, `{}}`, `{}{}`, `{} x`, "{}\x00", "\ufeff{}",
		`{"a"}`, `{"a":}`, `{"a":1,}`, `{,"a":1}`, `{"a":1 "b":2}`, `{"a":1;"b":2}`, `{a:1}`, `{'a':1}`, `{1:1}`, `{"a" 1}`,
		`{"a":01}`, `{"a":+1}`, `{"a":.5}`, `{"a":1.}`, `{"a":1e}`, `{"a":1e+}`, `{"a":-}`, `{"a":0x1}`, `{"a":NaN}`, `{"a":1_0}`,
		`{"a":1e309}`, `{"a":-1e400}`, `{"a":1.8E308}`, `{"a":[{"b":1e999999999999999999999}]}`, `{"a":` + strings.Repeat("9", 310) + `}`,
		`{"a":nul}`, `{"a":True}`, `{"a":nullx}`, `{"a":[1,]}`, `{"a":[,1]}`, `{"a":[1 2]}`, `{"a":[}`, `{"a":[`, `{"a":{`,
		`{"a":"`, `{"a":"\`, `{"a":"\"}`, `{"a":"\x"}`, `{"a":"\u12"}`, `{"a":"\u12g4"}`, "{\"a\":\"\n\"}", "{\"a\":\"\x00\"}", "{\"a\":\"\x1f\"}",
		`{"a":"\ud83d"}`, `{"a":"\ude00"}`, `{"a":"\ud83dx"}`, `{"a":"\ud83d\n"}`, `{"a":"\ud83d\u0041"}`, `{"a":"\ud83d\ud83d"}`,
		"{\"a\":\"\xff\"}", "{\"\xff\":1}", "{\"a\":\"\xed\xa0\x80\"}", "{\"a\":\"\xc0\xaf\"}",
		`{"a":1,"a":1}`, `{"a":1,"b":2,"a":3}`, `{"a":1,"A":2}`, `{"a":1,"\u0061":2}`, `{"k":1,"K":2}`, `{"s":1,"ſ":2}`,
		`{"\ud83d":1}`, `{"\ude00\ud83d":1}`, `{"x":{"a\ud83d":1}}`, `{"x":["\uD83d",1]}`,
		`{"x":{"a":1,"a":2}}`, `{"x":[[{"a":1,"a":2}]]}`, `{"x":{"y":{"é":1,"É":2}}}`,
		`{` + strings.Join(many, ",") + `,"M3":1}`, `{` + strings.Join(many, ",") + `,"m19":1}`,
		`{"a":` + strings.Repeat(`[`, 64) + strings.Repeat(`]`, 64) + `}`,
		`{"a":` + strings.Repeat(`{"a":`, 64) + `1` + strings.Repeat(`}`, 64) + `}`,
		`{"a":` + strings.Repeat(`[`, 16000),
	} {
		if err := strictjson.Object([]byte(text), 64, nil); err == nil {
			t.Errorf("%.80q was taken", text)
		}
	}
}

// FuzzObject: what is taken, encoding/json takes too, and finds the same members in it.
func FuzzObject(f *testing.F) {
	for _, s := range []string{`{"a":1}`, `{"a":{"b":[1.5e3,"\ud83d\ude00",null]},"c":""}`, `{"k":1,"K":2}`, `{"a":1,"\u0061":2}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got := map[string]string{}
		n := 0
		if strictjson.Object(b, 64, func(name, value []byte) error {
			got[string(name)] = string(value)
			n++
			return nil
		}) != nil {
			return
		}
		var want map[string]json.RawMessage
		if err := json.Unmarshal(b, &want); err != nil {
			t.Fatalf("%q is no JSON: %v", b, err)
		}
		if n != len(got) || len(got) != len(want) {
			t.Fatalf("%q: %d members, %d names, want %d", b, n, len(got), len(want))
		}
		for name, value := range want {
			if got[name] != string(value) {
				t.Fatalf("%q: %q is %q, want %q", b, name, got[name], value)
			}
		}
	})
}
