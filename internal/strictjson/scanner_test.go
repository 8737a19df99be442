package strictjson_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"example.com/keyring/internal/strictjson"
)

func TestValidLooksAtTheDepth(t *testing.T) {
	nested := func(n int) string { return strings.Repeat(`[`, n) + strings.Repeat(`]`, n) }
	for text, want := range map[string]bool{
		`1`: true, nested(3): true, nested(4): false, `{"a":[{"]":"[[[["}]}`: true, `[[],[],[[]]]`: true, nested(3) + "]": false, ``: false, `[[`: false,
	} {
		if strictjson.Valid([]byte(text), 3) != want {
			t.Errorf("%s: it is %v", text, !want)
		}
	}
}

// TestMembersOfDamagedText: those before the damage, and those behind it where it does not hide them.
func TestMembersOfDamagedText(t *testing.T) {
	for text, want := range map[string]string{
		``: "", `[`: "", `[1]`: "", `{`: "", `{}`: "", `{"a`: "", `{"a"`: "", `{"a":`: "a=", `{"a":1`: "a=1", `{"a":1]`: "a=1", `{"a":1,`: "a=1",
		`{"a":tru?,"b" : [1,{"c":2}] , "d":"x\"}"}`: `a=tru? b=[1,{"c":2}] d="x\"}"`,
		`{"a":"x"y,"b":1}`:                          `a="x"y b=1`, `{"a":"x,"b":1}`: `a="x,"b":1}`, `{"a":[1,"b":2`: `a=[1,"b":2`,
		`{"a":1,b:2}`: "a=1", `{"a":1,"b"?2}`: "a=1", `{"":1}`: "=1", `{"\u0061":1}`: `\u0061=1`, ` {"a":1} x`: "a=1", `{"a":"\`: `a="\`,
	} {
		var got []string
		for name, value := range strictjson.Members([]byte(text)) {
			got = append(got, fmt.Sprintf("%s=%s", name, value))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}

// FuzzMembers: nothing makes it panic, and of what is valid it finds what encoding/json does.
func FuzzMembers(f *testing.F) {
	for _, s := range []string{`{"a":1}`, `{"a" : {"b":[1.5e3,"\"}",null]} , "c":""}`, `{"a":1,"a":2}`, `[{`, `{"a":"\`, `{"a`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got := map[string]string{}
		for name, value := range strictjson.Members(b) {
			got[string(name)] = string(value)
		}
		var want map[string]json.RawMessage
		if json.Unmarshal(b, &want) != nil {
			return
		}
		spelled := map[string]string{}
		for name, value := range got {
			var plain string
			if err := json.Unmarshal([]byte(`"`+name+`"`), &plain); err != nil {
				t.Fatalf("%q: name %q: %v", b, name, err)
			}
			spelled[plain] = value
		}
		if len(spelled) != len(want) {
			t.Fatalf("%q: %d members, want %d", b, len(spelled), len(want))
		}
		if len(spelled) != len(got) {
			return // one is spelled in two ways: which comes last is not kept here
		}
		for name, value := range want {
			if spelled[name] != string(value) {
				t.Fatalf("%q: %q is %q, want %q", b, name, spelled[name], value)
			}
		}
	})
}
