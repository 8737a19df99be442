package nks

import (
	"maps"
	"slices"

	"example.com/keyring/internal/strictjson"
)

// maxNesting is several times what Nomad's files have.
const maxNesting = 16

// object returns those members of the JSON object b that are known, and whether there are
// others. A member that is null is absent. One that is there twice is an error.
func object(b []byte, known []string) (found map[string][]byte, others bool, err error) {
	if s := strictjson.Scan(b); s.Peek() != '{' {
		return nil, false, malformedNomad("no object where one belongs")
	}
	found = make(map[string][]byte, len(known))
	for name, value := range strictjson.Members(b) {
		i := slices.IndexFunc(known, func(k string) bool { return k == string(name) })
		if i < 0 {
			others = true
			continue
		}
		if _, twice := found[known[i]]; twice {
			return nil, false, malformedNomad("a member twice")
		}
		found[known[i]] = value
	}
	maps.DeleteFunc(found, func(_ string, v []byte) bool { return string(v) == "null" })
	return found, others, nil
}

func hasMember(b []byte, name string) bool {
	for n := range strictjson.Members(b) {
		if string(n) == name {
			return true
		}
	}
	return false
}
