package meta_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/keyring/internal/bounded/boundedtest"
	"example.com/keyring/internal/meta"
)

var update = flag.Bool("update", false, "rewrite the golden files in testdata")

// everyCommand has each command of version 1 with each of its members set.
func everyCommand() []meta.Command {
	ms := at(3).Add(1500 * time.Microsecond)
	add := meta.Add{Key: newKey(1), Publish: ms, Scheduled: true, Full: true, Revoke: ids(8, 9)}
	add.Key.ID = meta.KeyID{0xab, 0xcd, 0xef, 15: 1}
	return []meta.Command{
		{Init: &meta.Init{Cluster: meta.ClusterID{0xfe, 0xdc, 15: 1}}},
		{Add: &add},
		hold("a", 1, []int{1, 2}, []int{3}),
		{Forget: &meta.Forget{Servers: []string{"a", "B <&> ü"}}},
		activate(1, "abc", "ab"),
		{Rekey: &meta.Rekey{ID: id(1), Remove: true}},
		{Clean: &meta.Clean{ID: id(1)}},
		deprecate(1, 7),
		remove(1, meta.StateRekeying, true),
		adopt(1, true),
		backup(7),
	}
}

// secondCommands are those of version 2, and those of version 1 with what is new in them.
func secondCommands() []meta.Command {
	return []meta.Command{
		{AddJoinToken: &meta.AddJoinToken{Token: joinToken(1, 1)}},
		useJoinToken(1, 1),
		{EndJoinTokens: &meta.EndJoinTokens{IDs: []meta.TokenID{{15: 1}, {15: 2}}}},
		{EndJoinTokens: &meta.EndJoinTokens{All: true}},
		{Adopt: &meta.Adopt{Key: newKey(3), Admit: true, Time: at(9)}},
		{Add: &meta.Add{Key: newKey(4), Full: true, Compromised: true}},
	}
}

// thirdCommands are those of version 3.
func thirdCommands() []meta.Command { return []meta.Command{nonvoter("B <&> ü"), votes("B <&> ü")} }

func nonvoter(server string) meta.Command {
	return meta.Command{Nonvoter: &meta.Nonvoter{Server: server}}
}

// votes ends what nonvoter begins.
func votes(server string) meta.Command {
	return meta.Command{Nonvoter: &meta.Nonvoter{Server: server, End: true}}
}

// withNonvoters is a ring with what version 3 has.
func withNonvoters(t tb) *meta.Ring {
	h := begin(t)
	h.rotate(1)
	h.do(nonvoter("read <&> replica"), nonvoter("b"), nonvoter("x"), votes("x"))
	return h.ring
}

// suiteCommands are those that bring keys of a cipher suite that this build does not know.
func suiteCommands() []meta.Command {
	key := newKey(5)
	key.Suite = "some-suite"
	return []meta.Command{{Add: &meta.Add{Key: key}}, {Adopt: &meta.Adopt{Key: key, Time: at(9)}}}
}

// ofSuites is a ring with a key of such a suite.
func ofSuites(t tb) *meta.Ring {
	h := begin(t)
	h.rotate(1)
	h.rotate(5, func(a *meta.Add) { a.Key.Suite = "some-suite" })
	return h.ring
}

func joinToken(n, key int) meta.JoinToken {
	return meta.JoinToken{
		ID: meta.TokenID{15: byte(n)}, Server: fmt.Sprintf("new <&> %d", n), End: at(50), Key: id(key),
		Sealed: bytes.Repeat([]byte{byte(n)}, meta.SealedTokenSize),
	}
}

func addJoinToken(n, key int) meta.Command {
	return meta.Command{AddJoinToken: &meta.AddJoinToken{Token: joinToken(n, key)}}
}

func useJoinToken(n int, user byte) meta.Command {
	t := joinToken(n, 1)
	return meta.Command{UseJoinToken: &meta.UseJoinToken{ID: t.ID, Server: t.Server, User: meta.Digest{user}}}
}

// recent is a ring with what version 2 has.
func recent(t tb) *meta.Ring {
	h := begin(t)
	h.rotate(1)
	h.do(addJoinToken(1, 1))
	h.rotate(2)
	h.do(addJoinToken(2, 2), useJoinToken(2, 7))
	h.prepublish(3, compromised)
	return h.ring
}

// storied is a ring with a key in every state, a tombstone, and every member set somewhere.
func storied(t tb) *meta.Ring {
	h := begin(t)
	h.do(adopt(7, true))
	h.rotate(1)
	h.rotate(2, full)
	h.do(meta.Command{Rekey: &meta.Rekey{ID: id(7), Remove: true}})
	h.deprecate(1)
	h.deprecate(7)
	h.do(remove(1, meta.StateDeprecated, false))
	h.do(adopt(8, true))
	h.rotate(3, full, revoke(2))
	h.rotate(4)
	h.rotate(5)
	h.prepublish(6, full, revoke(5), func(a *meta.Add) { a.Publish, a.Scheduled = at(99), true })
	h.do(backup(7))
	h.do(hold("b", 2, []int{6}, nil), meta.Command{Forget: &meta.Forget{Servers: []string{"c"}}})
	return h.ring
}

func TestGoldenEntries(t *testing.T) {
	goldenEntries(t, 1, "testdata/entries.txt", everyCommand())
	goldenEntries(t, 2, "testdata/v2/entries.txt", secondCommands())
	goldenEntries(t, 2, "testdata/v2/suite-entries.txt", suiteCommands())
	goldenEntries(t, 3, "testdata/v3/entries.txt", thirdCommands())
	var all []reflect.Value
	for _, c := range slices.Concat(everyCommand(), secondCommands(), suiteCommands(), thirdCommands()) {
		all = append(all, reflect.ValueOf(c))
	}
	for _, name := range neverSet(reflect.TypeFor[meta.Command](), all) {
		if name == "JoinToken.User" || name == "Remove.Now" { // none is added with a user; the entries of version 1 are frozen
			continue
		}
		t.Errorf("no golden entry has %s: it needs one, of the version that version.go gives it", name)
	}
}

// neverSet returns the members of a struct, and of the structs of this package in it, that none of the values sets.
func neverSet(typ reflect.Type, all []reflect.Value) (names []string) {
	for i := range typ.NumField() {
		var set []reflect.Value
		for _, v := range all {
			if f := v.Field(i); !f.IsZero() {
				set = append(set, reflect.Indirect(f))
			}
		}
		field := typ.Field(i)
		if len(set) == 0 {
			names = append(names, typ.Name()+"."+field.Name)
		} else if inner := set[0].Type(); inner.Kind() == reflect.Struct && inner.PkgPath() == typ.PkgPath() {
			names = append(names, neverSet(inner, set)...)
		}
	}
	return names
}

// TestGoldenRingsHaveEveryMemberOfAKey is red for a member that no golden snapshot has.
func TestGoldenRingsHaveEveryMemberOfAKey(t *testing.T) {
	var all []reflect.Value
	for _, k := range slices.Concat(storied(t).Keys, recent(t).Keys, ofSuites(t).Keys) {
		all = append(all, reflect.ValueOf(*k))
	}
	for _, name := range neverSet(reflect.TypeFor[meta.Key](), all) {
		t.Errorf("no golden snapshot has %s: it needs one, of the version that version.go gives it", name)
	}
}

func goldenEntries(t *testing.T, version int, file string, cmds []meta.Command) {
	t.Helper()
	var b bytes.Buffer
	for _, c := range cmds {
		b.Write(must(encodeEntry(c)))
		b.WriteByte('\n')
	}
	b.Write(must(encodeEntry(cmds[0], cmds[1])))
	b.WriteByte('\n')
	asked := meta.Entry{Version: version, By: "alice <&> ü", Commands: cmds[:1]}
	b.Write(must(asked.Encode()))
	b.WriteByte('\n')
	lines := strings.Split(strings.TrimSpace(string(golden(t, file, b.Bytes()))), "\n")
	for i, c := range cmds {
		if got, err := meta.DecodeEntry([]byte(lines[i])); err != nil || got.Version != version || !reflect.DeepEqual(got.Commands, []meta.Command{c}) {
			t.Errorf("%s\ndecodes to %+v, %v", lines[i], got, err)
		}
	}
	if got, err := meta.DecodeEntry([]byte(lines[len(lines)-1])); err != nil || !reflect.DeepEqual(got, asked) {
		t.Errorf("%s\ndecodes to %+v, %v", lines[len(lines)-1], got, err)
	}
}

func TestGoldenSnapshot(t *testing.T) {
	goldenSnapshot(t, "testdata/snapshot.json", storied(t))
	goldenSnapshot(t, "testdata/v2/snapshot.json", recent(t))
	goldenSnapshot(t, "testdata/v2/suite-snapshot.json", ofSuites(t))
	goldenSnapshot(t, "testdata/v3/snapshot.json", withNonvoters(t))
}

func goldenSnapshot(t *testing.T, file string, want *meta.Ring) {
	t.Helper()
	b := golden(t, file, append(encode(t, want), '\n'))
	got, err := meta.Decode(bytes.TrimSuffix(b, []byte("\n")))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("decodes to %+v, %v", got, err)
	}
}

func golden(t *testing.T, name string, b []byte) []byte {
	t.Helper()
	if *update {
		if err := os.WriteFile(name, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, want) {
		t.Errorf("%s has\n%s\nthis build writes\n%s", name, want, b)
	}
	return want
}

// span is where in a text without spaces a JSON value lies.
type span struct {
	from, to int
	kind     byte // its first character, or 'm' for the name of a member
}

// spans returns every value and every name in the canonical JSON text.
func spans(b []byte) []span {
	var out []span
	var value func(i int, kind byte) int
	value = func(i int, kind byte) int {
		from := i
		switch b[i] {
		case '{', '[':
			for i++; b[i] != '}' && b[i] != ']'; {
				if b[i] == ',' {
					i++
				}
				if b[from] == '{' {
					i = value(i, 'm') + 1
				}
				i = value(i, b[i])
			}
			i++
		case '"':
			for i++; b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
			}
			i++
		default:
			for !strings.ContainsRune(",]}", rune(b[i])) {
				i++
			}
		}
		out = append(out, span{from, i, kind})
		return i
	}
	value(0, '{')
	return out
}

var (
	hexadecimal = regexp.MustCompile(`^"[0-9a-f-]{32,}"$`)
	instant     = regexp.MustCompile(`^"2026-.*Z"$`)
)

// spoil returns texts that say nearly the same as b, none of them in the canonical form.
func spoil(b []byte) map[string][]byte {
	out := map[string][]byte{}
	put := func(name string, s span, with ...string) {
		for i, w := range with {
			out[fmt.Sprintf("%s %d at %d", name, i, s.from)] = []byte(string(b[:s.from]) + w + string(b[s.to:]))
		}
	}
	for i := range b {
		put("truncated", span{from: i, to: len(b)}, "")
	}
	put("trailing", span{from: len(b), to: len(b)}, " ", "\n", "\x00", "}", ",", "null", "{}", string(b))
	put("leading", span{}, " ", "\ufeff", "null", "[")
	for _, s := range spans(b) {
		v := string(b[s.from:s.to])
		put("space", s, " "+v, v+" ", "\t"+v, "/**/"+v)
		switch {
		case s.kind == 'm':
			put("name", s, strings.ToUpper(v), strings.ToUpper(v[:2])+v[2:], `"x"`, `""`, fmt.Sprintf(`"\u%04x%s`, v[1], v[2:]))
			put("doubled member", s, v+":null,"+v, `"unknown":1,`+v, `"":null,`+v)
			continue
		case s.kind == '{':
			put("object", s, "[]", "{}", strings.TrimSuffix(v, "}")+`,"unknown":1}`, strings.TrimSuffix(v, "}")+",}", "["+v+"]")
		case s.kind == '[':
			put("array", s, "{}", "[]", strings.TrimSuffix(v, "]")+",]", strings.TrimSuffix(v, "]")+",null]", "[null]")
		case s.kind == '"':
			put("string", s, "0", `[]`, `"\ud800"`, "\"\xff\"", "\"\xed\xa0\x80\"", fmt.Sprintf(`"\u%04X%s`, v[1], v[2:]))
		default:
			put("scalar", s, `"`+v+`"`, v+".0", v+"e0", "0"+v, "-"+v, "+"+v, "18446744073709551616")
		}
		put("null", s, "null")
		if hexadecimal.MatchString(v) {
			put("hex", s, v[:len(v)-2]+"F\"", v[:len(v)-2]+`"`, v[:len(v)-1]+`00"`, v[:len(v)-2]+`g"`, `""`)
			if strings.ContainsAny(v, "abcdef") {
				put("upper", s, strings.ToUpper(v))
			}
		}
		if instant.MatchString(v) {
			z := v[:len(v)-2]
			put("time", s, z+`+00:00"`, z+`-00:00"`, z+`+01:00"`, z+`z"`, z+`"`, z+`,5Z"`, `"2026-13-01T00:00:00Z"`,
				`"0001-01-01T00:00:00Z"`, `"0001-01-01T01:00:00+01:00"`, `"2026-06-30T23:59:60Z"`, `"2026-01-01T24:00:00Z"`, `"2026-01-01 00:00:00Z"`)
			if strings.Contains(v, ".") {
				put("time", s, z+`0Z"`)
			} else {
				put("time", s, z+`.0Z"`, strings.Replace(v, "T0", "T", 1))
			}
		}
	}
	for i, version := range []string{"0", "1", "2", "3", "4", "11", "-1", `"1"`, `"2"`, "1.0", "null", "true", "99999999999999999999"} {
		out[fmt.Sprint("version ", i)] = regexp.MustCompile(`"version":\d`).ReplaceAll(b, []byte(`"version":`+version))
	}
	for name, text := range out {
		if bytes.Equal(text, b) {
			delete(out, name)
		}
	}
	return out
}

// refused reports whether an error is one of those that bytes are refused with.
func refused(err error) bool {
	return errors.Is(err, meta.ErrMalformed) || errors.Is(err, meta.ErrVersion)
}

// Scenario 24: what this build does not know is an error, never a panic or a half change.
func TestDecodeEntryRefusesEveryOtherSpelling(t *testing.T) {
	for i, c := range slices.Concat(everyCommand(), secondCommands(), suiteCommands(), thirdCommands()) {
		b := must(encodeEntry(c))
		for name, bad := range spoil(b) {
			if e, err := meta.DecodeEntry(bad); !refused(err) || e.Commands != nil {
				t.Errorf("command %d, %s: DecodeEntry = %v, %v\n%s", i, name, e, err, bad)
			}
		}
	}
}

func TestDecodeRefusesEveryOtherSpelling(t *testing.T) {
	for _, ring := range []*meta.Ring{storied(t), recent(t), withNonvoters(t)} {
		for name, bad := range spoil(encode(t, ring)) {
			if r, err := meta.Decode(bad); !refused(err) || r != nil {
				t.Errorf("%s: Decode = %v, %v\n%s", name, r, err, bad)
			}
		}
	}
}

func TestDecodeNamesTheVersion(t *testing.T) {
	b := `{"version":4,"commands":[{"enlarge":{"id":7}}],"more":[]}`
	if _, err := meta.DecodeEntry([]byte(b)); err == nil || !strings.Contains(err.Error(), "version 4") {
		t.Errorf("DecodeEntry: %v", err)
	}
	if _, err := meta.Decode([]byte(`{"version":4,"keys":[{}]}`)); err == nil || !strings.Contains(err.Error(), "version 4") {
		t.Errorf("Decode: %v", err)
	}
}

// malformed are commands that no entry may have. long is the longest ID of a server.
func malformed(long string) map[string]meta.Command {
	add := func(change func(*meta.Add)) meta.Command {
		a := meta.Add{Key: newKey(1)}
		change(&a)
		return meta.Command{Add: &a}
	}
	berlin := time.FixedZone("CET", 3600)
	tests := map[string]meta.Command{
		"empty":             {},
		"two members":       {Rekey: &meta.Rekey{ID: id(1)}, Deprecate: &meta.Deprecate{ID: id(1), Clean: 1}},
		"no cluster ID":     {Init: &meta.Init{}},
		"no key ID":         add(func(a *meta.Add) { a.Key.ID = meta.KeyID{} }),
		"no check value":    add(func(a *meta.Add) { a.Key.Check = meta.CheckValue{} }),
		"no algorithm":      add(func(a *meta.Add) { a.Key.Algorithm = "" }),
		"long algorithm":    add(func(a *meta.Add) { a.Key.Algorithm = strings.Repeat("R", 17) }),
		"broken algorithm":  add(func(a *meta.Add) { a.Key.Algorithm = "\xff" }),
		"no public key":     add(func(a *meta.Add) { a.Key.Public = nil }),
		"empty public key":  add(func(a *meta.Add) { a.Key.Public = []byte{} }),
		"large public key":  add(func(a *meta.Add) { a.Key.Public = make([]byte, meta.MaxPublic+1) }),
		"created never":     add(func(a *meta.Add) { a.Key.Created = time.Time{} }),
		"created in a zone": add(func(a *meta.Add) { a.Key.Created = at(1).In(berlin) }),
		"created in 12026":  add(func(a *meta.Add) { a.Key.Created = at(1).AddDate(10_000, 0, 0) }),
		"publish in a zone": add(func(a *meta.Add) { a.Publish = at(1).In(berlin) }),
		"revokes itself":    add(func(a *meta.Add) { a.Revoke = ids(1) }),
		"hold of nobody":    hold("a", 1, nil, nil),
		"hold, no keystore": {Hold: &meta.Hold{Server: "a"}},
		"hold, not UTF-8":   {Hold: &meta.Hold{Server: "a\xff", Keystore: keystore("a", 1)}},
		"forget nobody":     {Forget: &meta.Forget{}},
		"forget twice":      {Forget: &meta.Forget{Servers: []string{"a", "b", "a"}}},
		"forget empty":      {Forget: &meta.Forget{Servers: []string{""}}},
		"forget long":       {Forget: &meta.Forget{Servers: []string{long + "s"}}},
		"rekey nothing":     {Rekey: &meta.Rekey{}},
		"clean nothing":     {Clean: &meta.Clean{}},
		"deprecate nothing": {Deprecate: &meta.Deprecate{Clean: 1}},
		"deprecate untold":  {Deprecate: &meta.Deprecate{ID: id(1)}},
		"remove nothing":    remove(0, meta.StateDeprecated, true),
		"remove never":      {Remove: &meta.Remove{ID: id(1), From: meta.StateDeprecated}},
		"activate nothing":  activate(0, "abc", "ab"),
		"adopt never":       {Adopt: &meta.Adopt{Key: newKey(1)}},
		"adopt and admit":   {Adopt: &meta.Adopt{Key: newKey(1), DataOnly: true, Admit: true, Time: at(1)}},
		"adopt nothing":     {Adopt: &meta.Adopt{Time: at(1)}},
		"nonvoter, none":    nonvoter(""),
		"nonvoter, long":    nonvoter(long + "s"),
		"nonvoter no UTF-8": votes("a\xff"),
		"backup of nothing": backup(0),
		"backup, no digest": {Backup: &meta.Backup{Index: 1, Time: at(1)}},
		"backup, no time":   {Backup: &meta.Backup{Index: 1, Digest: meta.Digest{1}}},
	}
	tests["hold of nobody"].Hold.Server = ""
	return tests
}

func TestMalformedCommands(t *testing.T) {
	long := strings.Repeat("s", meta.MaxServerID)
	if _, err := encodeEntry(meta.Command{Forget: &meta.Forget{Servers: []string{long}}}); err != nil {
		t.Errorf("server ID of %d bytes: %v", len(long), err)
	}
	for name, c := range malformed(long) {
		if b, err := encodeEntry(c); err == nil {
			t.Errorf("%s: Encode = %s", name, b)
		}
		good := meta.Command{Rekey: &meta.Rekey{ID: id(1)}}
		if b, err := encodeEntry(good, c); err == nil {
			t.Errorf("%s, second in the entry: Encode = %s", name, b)
		}
	}
	if _, err := encodeEntry(); !errors.Is(err, meta.ErrMalformed) {
		t.Errorf("an entry without commands: %v", err)
	}
	for _, by := range []string{strings.Repeat("n", meta.MaxActor+1), "\xff"} {
		e := meta.Entry{By: by, Commands: []meta.Command{{Rekey: &meta.Rekey{ID: id(1)}}}}
		if b, err := e.Encode(); !errors.Is(err, meta.ErrMalformed) {
			t.Errorf("asked for by %q: %s, %v", by, b, err)
		}
	}
}

// Decode must refuse what Check does, and Check what no log leads to.
func TestCheckRefusesImpossibleRings(t *testing.T) {
	tests := map[string]func(r *meta.Ring){
		"no cluster ID":             func(r *meta.Ring) { r.Cluster = meta.ClusterID{} },
		"keys out of order":         func(r *meta.Ring) { r.Keys[0], r.Keys[1] = r.Keys[1], r.Keys[0] },
		"key twice":                 func(r *meta.Ring) { r.Keys[1] = r.Keys[0] },
		"nil key":                   func(r *meta.Ring) { r.Keys[1] = nil },
		"nil keys only":             func(r *meta.Ring) { r.Keys = []*meta.Key{nil} },
		"two active":                func(r *meta.Ring) { *r.Keys[4] = *active(r, 6) },
		"unknown state":             func(r *meta.Ring) { r.Key(id(4)).State = "tombstone" },
		"no state":                  func(r *meta.Ring) { r.Key(id(4)).State = "" },
		"tombstone and key":         func(r *meta.Ring) { r.Removed[0].ID = id(4) },
		"tombstone without ID":      func(r *meta.Ring) { r.Removed[0].ID = meta.KeyID{} },
		"tombstone without time":    func(r *meta.Ring) { r.Removed[0].Removed = time.Time{} },
		"tombstone twice":           func(r *meta.Ring) { r.Removed = append(r.Removed, r.Removed[0]) },
		"servers out of order":      func(r *meta.Ring) { r.Servers[0], r.Servers[1] = r.Servers[1], r.Servers[0] },
		"server twice":              func(r *meta.Ring) { r.Servers[1] = r.Servers[0] },
		"server without keystore":   func(r *meta.Ring) { r.Servers[0].Keystore = meta.KeystoreID{} },
		"server without ID":         func(r *meta.Ring) { r.Servers[0].ID = "" },
		"unknown holder":            func(r *meta.Ring) { r.Key(id(6)).Holders = []string{"a", "z"} },
		"holder twice":              func(r *meta.Ring) { r.Key(id(6)).Holders = []string{"a", "a"} },
		"holders out of order":      func(r *meta.Ring) { r.Key(id(6)).Holders = []string{"b", "a"} },
		"active, never activated":   func(r *meta.Ring) { r.Active().Activated = time.Time{} },
		"active, retired":           func(r *meta.Ring) { r.Active().Retired = at(1) },
		"inactive, never retired":   func(r *meta.Ring) { r.Key(id(4)).Retired = time.Time{} },
		"prepublished, activated":   func(r *meta.Ring) { r.Key(id(6)).Activated = at(1) },
		"prepublished, retired":     func(r *meta.Ring) { r.Key(id(6)).Retired = at(1) },
		"key without public key":    func(r *meta.Ring) { r.Key(id(6)).Public = nil },
		"key without check value":   func(r *meta.Ring) { r.Key(id(6)).Check = meta.CheckValue{} },
		"time of a zone":            func(r *meta.Ring) { r.Key(id(4)).Retired = at(1).In(time.FixedZone("CET", 3600)) },
		"publish time of a zone":    func(r *meta.Ring) { r.Key(id(6)).Publish = at(1).In(time.FixedZone("CET", 3600)) },
		"activation time of a zone": func(r *meta.Ring) { r.Active().Activated = at(1).In(time.FixedZone("CET", 3600)) },
	}
	snap := encode(t, storied(t))
	for name, spoil := range tests {
		r := must(meta.Decode(snap))
		spoil(r)
		if r.Check() == nil {
			t.Errorf("%s: Check accepts it", name)
		}
		if got, err := meta.Decode(encode(t, r)); !errors.Is(err, meta.ErrMalformed) {
			t.Errorf("%s: Decode = %v, %v", name, got, err)
		}
	}
}

// active is the active key under another ID, with that key's neighbours kept in order.
func active(r *meta.Ring, n int) *meta.Key {
	k := *r.Active()
	k.ID = id(n)
	return &k
}

func TestCheckStepRefusesImpossibleSteps(t *testing.T) {
	tests := map[string]func(r *meta.Ring){
		"other cluster":      func(r *meta.Ring) { r.Cluster[0]++ },
		"tombstone vanished": func(r *meta.Ring) { r.Removed = nil },
		"key vanished":       func(r *meta.Ring) { r.Keys = r.Keys[1:] },
		"active key removed": func(r *meta.Ring) {
			r.Removed = append(r.Removed, meta.Tombstone{ID: id(5), Removed: at(1), Index: 1})
			for i, k := range r.Keys {
				if k.State == meta.StateActive {
					r.Keys = append(r.Keys[:i:i], r.Keys[i+1:]...)
					return
				}
			}
		},
		"active key retired alone": func(r *meta.Ring) { k := r.Active(); k.State, k.Retired = meta.StateInactive, at(1) },
		"back to active":           func(r *meta.Ring) { r.Key(id(4)).State = meta.StateActive },
		"back to prepublished":     func(r *meta.Ring) { r.Key(id(4)).State = meta.StatePrepublished },
		"back to inactive":         func(r *meta.Ring) { r.Key(id(2)).State = meta.StateInactive },
		"back to rekeying":         func(r *meta.Ring) { r.Key(id(7)).State = meta.StateRekeying },
		"other check value":        func(r *meta.Ring) { r.Key(id(4)).Check[0]++ },
		"other public key":         func(r *meta.Ring) { r.Key(id(4)).Public = []byte{1} },
		"other algorithm":          func(r *meta.Ring) { r.Key(id(4)).Algorithm = "RS256" },
		"no longer revoked":        func(r *meta.Ring) { r.Key(id(2)).Revoked = false },
	}
	before := storied(t)
	for name, change := range tests {
		next := must(meta.Decode(encode(t, before)))
		if err := before.CheckStep(next); err != nil {
			t.Fatalf("CheckStep to an equal ring: %v", err)
		}
		change(next)
		if r, err := meta.Decode(encode(t, next)); err == nil {
			next = r
		}
		if before.CheckStep(next) == nil {
			t.Errorf("%s: CheckStep accepts it", name)
		}
	}
}

// One entry may retire the active key and remove it.
func TestCheckStepTakesActivateAndRemoveInOneEntry(t *testing.T) {
	h := begin(t)
	h.rotate(1)
	h.prepublish(2)
	h.do(activate(2, "abc", "abc"), remove(1, meta.StateInactive, true))
	h.wantState(1, "tombstone")
}

func TestZeroRing(t *testing.T) {
	r := &meta.Ring{}
	b := encode(t, r)
	if string(b) != `{"version":1}` || r.Check() != nil {
		t.Errorf("Encode = %s, Check = %v", b, r.Check())
	}
	if got, err := meta.Decode(b); err != nil || !reflect.DeepEqual(got, r) {
		t.Errorf("Decode = %+v, %v", got, err)
	}
}

// A short text must not grow into much: every list is tried full of the shortest elements.
func TestDecodeAllocatesInProportion(t *testing.T) {
	const most = 32 // bytes allocated for one read, those already freed included
	fill := func(before, element, after string) string {
		n := 256 << 10 / len(element)
		return before + strings.TrimSuffix(strings.Repeat(element+",", n), ",") + after
	}
	anID := `"` + id(1).String() + `"`
	inputs := []string{
		fill(`{"version":1,"commands":[`, `{}`, `]}`),
		fill(`{"version":1,"commands":[`, `null`, `]}`),
		fill(`{"version":1,"commands":[`, `{"add":{}}`, `]}`),
		fill(`{"version":1,"commands":[`, `{"activate":{}}`, `]}`),
		fill(`{"version":1,"commands":[`, `{"rekey":{"id":`+anID+`}}`, `]}`),
		fill(`{"version":1,"commands":[{`, `"add":{},"add":null`, `}]}`),
		fill(`{"version":1,"commands":[{"hold":{"gained":[`, `null`, `]}}]}`),
		fill(`{"version":1,"commands":[{"hold":{"gained":[`, anID, `]}}]}`),
		fill(`{"version":1,"commands":[{"activate":{"confirmed":[`, `{}`, `]}}]}`),
		fill(`{"version":1,"commands":[{"activate":{"voters":[`, `"a"`, `]}}]}`),
		fill(`{"version":1,"commands":[{"forget":{"servers":[`, `null`, `]}}]}`),
		fill(`{"version":1,"commands":[{"forget":{"servers":["`, `<<<<<<<<`, `"]}}]}`),
		fill(`{"version":1,"keys":[`, `{}`, `]}`),
		fill(`{"version":1,"keys":[`, `null`, `]}`),
		fill(`{"version":1,"keys":[`, `{"id":`+anID+`}`, `]}`),
		fill(`{"version":1,"keys":[`, `{"id":`+anID+`,"check":"`+strings.Repeat("01", 32)+`"}`, `]}`),
		fill(`{"version":1,"keys":[{"holders":[`, `""`, `]}]}`),
		fill(`{"version":1,"removed":[`, `{}`, `]}`),
		fill(`{"version":1,"removed":[`, `{"id":`+anID+`}`, `]}`),
		fill(`{"version":1,"servers":[`, `{}`, `]}`),
		fill(`{"version":1,"unknown":[`, `[]`, `]}`),
		`{"version":1,"unknown":` + strings.Repeat("[", 256<<10),
		string(encode(t, large(t, 1000).ring)),
	}
	for _, in := range inputs {
		for name, f := range map[string]func([]byte){
			"DecodeEntry": func(b []byte) { _, _ = meta.DecodeEntry(b) },
			"Decode":      func(b []byte) { _, _ = meta.Decode(b) },
		} {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			f([]byte(in))
			runtime.ReadMemStats(&after)
			if n := float64(after.TotalAlloc-before.TotalAlloc) / float64(len(in)); n > most {
				t.Errorf("%s allocates %.1f bytes for each byte of %.60s…", name, n, in)
			}
		}
	}
}

func seeds(f *testing.F, file string) [][]byte {
	b, err := os.ReadFile(file)
	if err != nil {
		f.Fatal(err)
	}
	return bytes.Split(bytes.TrimSpace(b), []byte("\n"))
}

// What decodes encodes back to the same bytes.
func FuzzDecodeEntry(f *testing.F) {
	for _, b := range slices.Concat(seeds(f, "testdata/entries.txt"), seeds(f, "testdata/v2/entries.txt"), seeds(f, "testdata/v3/entries.txt")) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var e meta.Entry
		var err error
		boundedtest.Memory(t, len(b), 64<<10, 128, func() { e, err = meta.DecodeEntry(b) })
		if err != nil {
			if !errors.Is(err, meta.ErrMalformed) && !errors.Is(err, meta.ErrVersion) {
				t.Fatalf("DecodeEntry: %v", err)
			}
			return
		}
		if again, err := e.Encode(); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%s\nencodes back to\n%s, %v", b, again, err)
		}
	})
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"version":1}`))
	for _, b := range slices.Concat(seeds(f, "testdata/snapshot.json"), seeds(f, "testdata/v2/snapshot.json"), seeds(f, "testdata/v3/snapshot.json")) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var r *meta.Ring
		var err error
		boundedtest.Memory(t, len(b), 64<<10, 128, func() { r, err = meta.Decode(b) })
		if err != nil {
			if !errors.Is(err, meta.ErrMalformed) && !errors.Is(err, meta.ErrVersion) {
				t.Fatalf("Decode: %v", err)
			}
			return
		}
		if again := encode(t, r); !bytes.Equal(again, b) {
			t.Fatalf("%s\nencodes back to\n%s", b, again)
		}
	})
}

// Apply is total: any entry that decodes meets any ring that decodes.
func FuzzApply(f *testing.F) {
	for _, snap := range append(seeds(f, "testdata/snapshot.json"), []byte(`{"version":1}`)) {
		for _, entry := range slices.Concat(seeds(f, "testdata/entries.txt"), seeds(f, "testdata/v2/entries.txt"), seeds(f, "testdata/v3/entries.txt")) {
			f.Add(snap, entry)
		}
	}
	f.Fuzz(func(t *testing.T, snap, entry []byte) {
		r, err := meta.Decode(snap)
		if err != nil {
			return
		}
		e, err := meta.DecodeEntry(entry)
		if err != nil {
			return
		}
		h := &history{tb: t, ring: r, index: 1<<63 - 1}
		for _, k := range r.Keys {
			if k.CreateIndex > h.index {
				return // no log is that long
			}
		}
		_ = h.apply(e.Commands)
	})
}

// TestEncodeIsTheJSONOfTheRing: what is written piece by piece is what encoding/json makes of the whole.
func TestEncodeIsTheJSONOfTheRing(t *testing.T) {
	for _, ring := range []*meta.Ring{{}, {Cluster: meta.ClusterID{1}}, begin(t).ring, storied(t), recent(t)} {
		whole, err := json.Marshal(struct {
			Version int `json:"version"`
			meta.Ring
		}{meta.This.Ring(ring), *ring})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ring.Encode(); err != nil || !bytes.Equal(got, whole) {
			t.Errorf("%s, %v\nwant %s", got, err, whole)
		}
		for _, more := range []string{" ", "}", "\n"} {
			if _, err := meta.Decode(append(bytes.Clone(whole), more...)); !errors.Is(err, meta.ErrMalformed) {
				t.Errorf("%s%s: %v", whole, more, err)
			}
		}
	}
}
