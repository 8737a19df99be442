package records

// OpenFrom is Open, on a Map that has what get says.
func (m *Map) OpenFrom(name string, get func(string) (Record, bool)) (Record, [][]byte, error) {
	return m.open(name, get)
}
