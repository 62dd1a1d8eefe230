//! The columns that conditions read, each once with the description that the condition was made with. Two descriptions of one
//! field (an enum had fewer labels) are two columns.

use crate::predicate::Input;

/// Columns by number. A number is free again when nobody reads its column.
#[derive(Debug, Default)]
pub(super) struct Columns {
    inputs: Vec<Input>,
    /// How many conditions read each.
    readers: Vec<u32>,
    /// Of those that are read: field and number, ascending.
    by_field: Vec<(u32, usize)>,
}

impl Columns {
    pub(super) fn inputs(&self) -> &[Input] {
        &self.inputs
    }

    pub(super) fn by_field(&self) -> &[(u32, usize)] {
        &self.by_field
    }

    /// The column's number, if it is here.
    pub(super) fn place(&self, input: &Input) -> Option<usize> {
        let first = self.by_field.partition_point(|&(field, _)| field < input.field);
        let numbers = self.by_field[first..].iter().take_while(|&&(field, _)| field == input.field);
        numbers.map(|&(_, number)| number).find(|&number| self.inputs[number] == *input)
    }

    /// One more condition reads it.
    pub(super) fn hold(&mut self, input: &Input) {
        if let Some(number) = self.place(input) {
            self.readers[number] += 1;
            return;
        }
        let number = match self.readers.iter().position(|&readers| readers == 0) {
            Some(free) => {
                self.inputs[free] = input.clone();
                self.readers[free] = 1;
                free
            }
            None => {
                self.inputs.push(input.clone());
                self.readers.push(1);
                self.inputs.len() - 1
            }
        };
        let place = self.by_field.partition_point(|&column| column < (input.field, number));
        self.by_field.insert(place, (input.field, number));
    }

    /// One condition less.
    pub(super) fn release(&mut self, number: usize) {
        self.readers[number] -= 1;
        if self.readers[number] == 0 {
            self.by_field.retain(|&(_, other)| other != number);
        }
    }
}
