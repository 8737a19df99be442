package nks

import "reflect"

// Fields gives the tests that walk them the fields of the secret behind m.
func (m *Material) Fields() reflect.Value { return reflect.ValueOf(m.reveal()).Elem() }

// Fields gives the tests what a Nomad hides.
func (n *Nomad) Fields() [][]byte {
	w := n.reveal()
	return [][]byte{w.kek, w.root, w.rsa}
}
